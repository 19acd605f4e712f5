"""MixUp and CutMix of stacks: two patients in one, with what is known of them mixed alike."""

from dataclasses import dataclass

import numpy as np
import torch

from src.cls.dataset import StackBatch

ALPHA = 0.5
"""Of the Beta distribution of shares: most mixtures are mainly one of the two."""


@dataclass(frozen=True)
class StackMixer:
    """Mixes the stacks of a batch with each other, one draw a batch; no stack with itself.

    MixUp (Zhang et al. 2018, arXiv 1710.09412) adds the pictures up by their share; CutMix (Yun et al. 2019,
    arXiv 1905.04899) puts a rectangle of one, through all slices, in its place in the other. Labels count by
    the share and by how much each patient counts; organ maps are cut along, and not used of pictures that
    were added up.
    """

    mixup: float
    """probability of MixUp"""
    cutmix: float
    """probability of CutMix, of the batches that MixUp leaves"""

    def __call__(
        self, batch: StackBatch, importance: torch.Tensor, rng: np.random.Generator
    ) -> tuple[StackBatch, torch.Tensor]:
        """The batch, with images float where pictures are added up, and how much each stack of it counts.

        Args:
            importance: (B,) how much each patient counts.
        """
        draw = rng.random()
        share, order = float(rng.beta(ALPHA, ALPHA)), _draw_partners(len(batch.images), rng)
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
        own = (share * importance / counts)[:, None]  # the loss is linear in the targets
        return (
            mixed._replace(
                targets=own * batch.targets + (1 - own) * batch.targets[order],
                slice_targets=share * batch.slice_targets + (1 - share) * batch.slice_targets[order],
                # where one stack ends before the other, the longer one is still to be seen
                padding=batch.padding & batch.padding[order],
            ),
            counts,
        )


def _draw_partners(count: int, rng: np.random.Generator) -> torch.Tensor:
    """int64 (count,): each stack's partner is the next one in a random circle, never itself."""
    circle = rng.permutation(count)
    partners = np.empty_like(circle)
    partners[circle] = np.roll(circle, -1)
    return torch.from_numpy(partners)


def _rectangle(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a rectangle that takes a share of the image, wherever it fits."""
    sides = [max(1, round(side * share**0.5)) for side in (height, width)]
    tops = [int(rng.integers(side - own + 1)) for side, own in zip((height, width), sides, strict=True)]
    rows, columns = (slice(top, top + own) for top, own in zip(tops, sides, strict=True))
    return rows, columns
