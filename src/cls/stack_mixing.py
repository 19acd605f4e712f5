"""MixUp and CutMix of slice stacks and their targets."""

from dataclasses import dataclass

import numpy as np
import torch

from src.cls.dataset import StackBatch
from src.core.runtime import to_device

ALPHA = 0.5
"""Parameter of the Beta distribution of mixing weights: most mixtures are dominated by one stack."""


@dataclass(frozen=True)
class StackMixer:
    """Mix the stacks of a batch with each other, by one draw per batch; no stack with itself.

    MixUp (Zhang et al. 2018, arXiv 1710.09412) is the weighted sum of the images; CutMix (Yun et al. 2019,
    arXiv 1905.04899) copies a rectangle of one stack, through all slices, to the same place in another.
    Targets are weighted by the area or mixing weight and by the importance of each patient; organ maps are
    cut like the images, and not used after MixUp.
    """

    mixup: float
    """probability of MixUp"""
    cutmix: float
    """probability of CutMix in batches without MixUp"""

    def __call__(
        self, batch: StackBatch, importance: torch.Tensor, rng: np.random.Generator
    ) -> tuple[StackBatch, torch.Tensor]:
        """Return the mixed batch, with float images after MixUp, and the importance of its stacks, (B,).

        Args:
            importance: (B,) weight of each patient in the loss.
        """
        draw = rng.random()
        share = float(rng.beta(ALPHA, ALPHA))
        order = to_device(_draw_partners(len(batch.images), rng), batch.images.device)
        if draw < self.mixup:
            images = batch.images.float()
            images = share * images + (1 - share) * images[order]
            mixed = batch._replace(images=images, has_organs=torch.zeros_like(batch.has_organs))
        elif draw < self.mixup + (1 - self.mixup) * self.cutmix:
            height, width = batch.images.shape[-2:]
            rows, columns = _rectangle(height, width, 1 - share, rng)
            images, organs = batch.images.clone(), batch.organs.clone()
            images[..., rows, columns] = batch.images[order][..., rows, columns]
            organs[..., rows, columns] = batch.organs[order][..., rows, columns]
            cut = (rows.stop - rows.start) * (columns.stop - columns.start)
            share = 1 - cut / (height * width)
            has_organs = batch.has_organs & batch.has_organs[order]
            mixed = batch._replace(images=images, organs=organs, has_organs=has_organs)
        else:
            return batch, importance
        counts = share * importance + (1 - share) * importance[order]
        first_share = (share * importance / counts)[:, None]  # the loss is linear in the targets
        return (
            mixed._replace(
                targets=first_share * batch.targets + (1 - first_share) * batch.targets[order],
                slice_targets=share * batch.slice_targets + (1 - share) * batch.slice_targets[order],
                # if one stack ends before the other, the longer one continues
                padding=batch.padding & batch.padding[order],
            ),
            counts,
        )


def _draw_partners(count: int, rng: np.random.Generator) -> torch.Tensor:
    """int64 (count,): partner of each stack, the next one in a random cycle, never itself."""
    circle = rng.permutation(count)
    partners = np.empty_like(circle)
    partners[circle] = np.roll(circle, -1)
    return torch.from_numpy(partners)


def _rectangle(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Return rows and columns of a random rectangle that covers a given fraction of the image's area."""
    sides = [max(1, round(side * share**0.5)) for side in (height, width)]
    tops = [int(rng.integers(side - own + 1)) for side, own in zip((height, width), sides, strict=True)]
    rows, columns = (slice(top, top + length) for top, length in zip(tops, sides, strict=True))
    return rows, columns
