"""Training terms for unlabelled slices: pseudo-labels of the EMA weights, and a pixel contrast.

The EMA weights predict the unchanged slices. The networks in training get them with changed contrast,
sharpness and noise, and with a rectangle of another slice pasted in: repeating their own predictions on the
same image would teach them nothing. The rectangles follow CutMix (arXiv 1905.04899; for
semi-supervised segmentation arXiv 1906.01916) and bidirectional copy-paste (arXiv 2305.00673, which also
pastes labelled into unlabelled slices).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from src.seg.losses import class_prototypes, pixel_loss, prototype_contrast, pseudo_labels, reliable_pixels
from src.seg.model import CLASSES, EMBEDDED, SegmenterPair, SliceOutput
from src.seg.options import SegOptions

PATCH_AREA = (0.1, 0.5)
"""Minimum and maximum share of a slice that a rectangle covers."""

_LARGEST_ASPECT = 2.0


class Patch(NamedTuple):
    """A rectangle that is copied from one slice of the batch to the same place in another."""

    target: int
    """row of the batch that receives it"""
    source: int
    """row of the batch that it is copied from"""
    rows: slice
    columns: slice


class MixedBatch(NamedTuple):
    """Slices with rectangles pasted in, and the targets of the unlabelled ones."""

    strong: Tensor
    """uint8 (B, 2, H, W, C), labelled slices first"""
    targets: tuple[Tensor, Tensor]
    """targets from A's and B's EMA weights: probabilities (U, CLASSES, H, W); true labels in rectangles from
    labelled slices"""


@torch.no_grad()
def mix_unlabelled(
    ema_pair: SegmenterPair, strong: Tensor, weak: Tensor, labels: Tensor, probability: float
) -> MixedBatch:
    """Predict the unlabelled slices with the EMA weights, then paste rectangles into slices and targets.

    Args:
        strong: uint8 (B, 2, H, W, C), labelled slices first.
        weak: uint8 (U, H, W, C), the unlabelled slices with unchanged appearance.
        labels: int64 (L, H, W) of the labelled slices.
        probability: probability that an unlabelled slice receives a rectangle from another slice.
    """
    predicted = ema_pair.eval()(weak, weak)
    truth = F.one_hot(labels, CLASSES).movedim(-1, 1).float()
    patches = draw_patches(len(strong), len(labels), tuple(strong.shape[2:4]), probability)
    targets = (
        paste(torch.cat([truth, output.logits.float().softmax(1)]), patches)[len(labels) :]
        for output in predicted
    )
    mixed = paste(strong.movedim(-1, 2), patches).movedim(2, -1)  # pasted along its last two axes
    return MixedBatch(mixed, tuple(targets))


def draw_patches(batch: int, labelled: int, shape: tuple[int, int], probability: float) -> list[Patch]:
    """Draw, for each unlabelled slice with a given probability, a rectangle of any other slice of the batch.

    The draws come from torch's CPU generator, so they are the same on every device.

    Args:
        batch: number of slices; the first `labelled` of them are labelled and receive no rectangle.
        shape: height and width of a slice.
    """
    patches = []
    for target in range(labelled, batch):
        chance, area, aspect, top, left = torch.rand(5).tolist()
        source = int(torch.randint(batch, ()))
        if chance >= probability or source == target:
            continue
        share = PATCH_AREA[0] + area * (PATCH_AREA[1] - PATCH_AREA[0])
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
    """Copy a batch (B, ..., H, W) and paste every patch into the copy, always from the original batch."""
    pasted = rows.clone()
    for patch in patches:
        place = (..., patch.rows, patch.columns)
        pasted[patch.target][place] = rows[patch.source][place]
    return pasted


def unlabelled_terms(
    pair: tuple[SliceOutput, SliceOutput],
    batch: MixedBatch,
    labels: Tensor,
    a_teaches: Tensor,
    step: int,
    options: SegOptions,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weighted loss terms of the unlabelled slices, and shares of pixels to log.

    Args:
        pair: outputs of A and B for `batch.strong`.
        labels: int64 (L, H, W) of the labelled slices, which come first in the batch.
        a_teaches: bool (), whether A teaches B or B teaches A: a tensor, since a Python value would wait for
            the device.
        step: number of optimiser steps so far.
    """
    targets, labelled = batch.targets, len(labels)
    done = step / options.steps
    ramp = math.exp(-5 * (1 - min(1.0, done / options.ramp)) ** 2)
    reliable = reliable_pixels(*targets, options.unreliable * (1 - done))  # (U, H, W)
    teaching = torch.where(a_teaches, *targets)  # (U, CLASSES, H, W)
    terms = {}
    if options.pseudo:
        pseudo = pseudo_labels(teaching, reliable)
        of_a, of_b = (output.logits[labelled:] for output in pair)
        learning = torch.where(a_teaches, of_b, of_a)  # no gradient flows to the other one
        # no Dice: it rewards predictions that are slightly too large, and as pseudo-labels these add up
        terms["pseudo"] = options.pseudo * ramp * pixel_loss(learning, pseudo)
    if options.contrast:
        # labelled slices contribute to the prototypes with their true classes
        true, a, b, reliable_ones = (each[..., EMBEDDED, EMBEDDED] for each in (labels, *targets, reliable))
        classes = torch.cat([true, (a + b).argmax(1)])
        is_reliable = torch.cat([torch.ones_like(true, dtype=torch.bool), reliable_ones])
        contrasts = []
        for output in pair:
            prototypes = class_prototypes(output.embedding, classes, is_reliable, CLASSES)
            contrasts.append(
                prototype_contrast(output.embedding, classes, ~is_reliable, prototypes, options.temperature)
            )
        terms["contrast"] = options.contrast * ramp * (contrasts[0] + contrasts[1])
    organ = (teaching.argmax(1) > 0).float().mean()
    return terms, {"reliable": reliable.float().mean(), "organ": organ}
