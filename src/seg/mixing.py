"""Rectangles of other slices in unlabelled ones: what a network must recognise in spite of its surroundings.

A network that learned from its own answers alone would agree with itself at once. After CutMix (arXiv
1905.04899, for semi-supervised segmentation arXiv 1906.01916) and bidirectional copy-paste (arXiv 2305.00673,
where labelled slices lend rectangles, too).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

AREA = (0.1, 0.5)
"""Least and largest share of a slice that a rectangle covers."""

_LARGEST_ASPECT = 2.0


class Patch(NamedTuple):
    """A rectangle that a slice takes from another one, at the same place."""

    target: int
    """row of the batch that takes it"""
    source: int
    """row of the batch that lends it"""
    rows: slice
    columns: slice


def draw_patches(batch: int, labelled: int, shape: tuple[int, int], probability: float) -> list[Patch]:
    """For each unlabelled slice, with a probability, a rectangle of any other slice of the batch.

    Torch's generator decides; the draws are the same on every device.

    Args:
        batch: slices, the first `labelled` of which are labelled and take no rectangle.
        shape: height and width of a slice.
    """
    patches = []
    for target in range(labelled, batch):
        wanted, area, aspect, top, left = torch.rand(5).tolist()
        source = int(torch.randint(batch, ()))
        if wanted >= probability or source == target:
            continue
        share = AREA[0] + area * (AREA[1] - AREA[0])
        stretch = _LARGEST_ASPECT ** (2 * aspect - 1)
        sides = (math.sqrt(share * stretch), math.sqrt(share / stretch))
        spans = []
        for side, length, begin in zip(sides, shape, (top, left), strict=True):
            pixels = max(1, min(length, round(side * length)))
            first = int(begin * (length - pixels + 1))
            spans.append(slice(first, first + pixels))
        patches.append(Patch(target, source, *spans))
    return patches


def paste(rows: Tensor, patches: list[Patch]) -> Tensor:
    """A copy of the batch (B, ..., H, W) with every patch from the batch as it was."""
    pasted = rows.clone()
    for patch in patches:
        pasted[patch.target, ..., patch.rows, patch.columns] = rows[
            patch.source, ..., patch.rows, patch.columns
        ]
    return pasted
