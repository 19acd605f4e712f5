"""What unlabelled slices teach: labels of the averaged weights, and the contrast of uncertain pixels.

The averaged weights see a slice as it is. The networks that learn see it with other contrast, sharpness and
noise, and with a rectangle of another slice in it: a network that had to repeat its own answers to the same
picture would have nothing to learn.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from src.seg.losses import class_prototypes, pixel_loss, prototype_contrast, pseudo_labels, reliable_pixels
from src.seg.mixing import draw_patches, paste
from src.seg.model import CLASSES, EMBEDDED, Answer, SegmenterPair
from src.seg.options import SegOptions


class MixedBatch(NamedTuple):
    """The slices as the pair is to see them, and what it is to be taught about those without labels."""

    strong: Tensor
    """uint8 (B, 2, H, W, C), labelled slices first"""
    targets: tuple[Tensor, Tensor]
    """of A and of B of the EMA teacher: probabilities (U, CLASSES, H, W); true labels where those were
    pasted"""


@torch.no_grad()
def mix_and_ask(
    ema_teacher: SegmenterPair, strong: Tensor, weak: Tensor, labels: Tensor, mix: float
) -> MixedBatch:
    """Ask the averaged weights about unlabelled slices, and mix slices.

    Args:
        strong: uint8 (B, 2, H, W, C), labelled slices first.
        weak: uint8 (U, H, W, C), the unlabelled slices as they are.
        labels: int64 (L, H, W) of the labelled slices.
        mix: probability that an unlabelled slice takes a rectangle from another slice of the batch.
    """
    answers = ema_teacher.eval()(weak, weak)
    truth = F.one_hot(labels, CLASSES).movedim(-1, 1).float()
    patches = draw_patches(len(strong), len(labels), tuple(strong.shape[2:4]), mix)
    targets = (
        paste(torch.cat([truth, answer.logits.float().softmax(1)]), patches)[len(labels) :]
        for answer in answers
    )
    mixed = paste(strong.movedim(-1, 2), patches).movedim(2, -1)  # pasted along its last two axes
    return MixedBatch(mixed, tuple(targets))


def unlabelled_terms(
    pair: tuple[Answer, Answer],
    batch: MixedBatch,
    labels: Tensor,
    teaching: int,
    step: int,
    options: SegOptions,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of the unlabelled slices, with their weights, and what is to be watched.

    Args:
        pair: answers to `batch.strong`.
        labels: int64 (L, H, W), true of the labelled slices, which stand first.
        teaching: 0 or 1, the sub-network with the lower supervised loss on this batch.
        step: optimiser steps done.
    """
    targets, labelled = batch.targets, len(labels)
    done = step / options.steps
    ramp = math.exp(-5 * (1 - min(1.0, done / options.ramp)) ** 2)
    reliable = reliable_pixels(*targets, options.unreliable * (1 - done))  # (U, H, W)
    terms = {}
    if options.pseudo:
        pseudo = pseudo_labels(targets[teaching], reliable)
        # no Dice: it rewards answers that are a little too large, and being taught them adds up
        terms["pseudo"] = options.pseudo * ramp * pixel_loss(pair[1 - teaching].logits[labelled:], pseudo)
    if options.contrast:
        # the labelled slices vouch for the prototypes, too: their classes are known
        classes = torch.cat([labels, (targets[0] + targets[1]).argmax(1)])[:, EMBEDDED, EMBEDDED]
        is_reliable = torch.cat([torch.ones_like(labels, dtype=torch.bool), reliable])
        is_reliable = is_reliable[:, EMBEDDED, EMBEDDED]
        contrasts = []
        for answer in pair:
            prototypes = class_prototypes(answer.embedding, classes, is_reliable, CLASSES)
            contrasts.append(
                prototype_contrast(answer.embedding, classes, ~is_reliable, prototypes, options.temperature)
            )
        terms["contrast"] = options.contrast * ramp * (contrasts[0] + contrasts[1])
    organ = (targets[teaching].argmax(1) > 0).float().mean()
    return terms, {"reliable": reliable.float().mean(), "organ": organ}
