"""The losses of contextual position prediction, each reduced per volume.

Sources: VoCo (arXiv 2402.17300) for the intra-volume terms, large-scale VoCo (arXiv 2410.09890) for the
inter-volume term, 2D-VoCo (arXiv 2601.14593) for their use on slab embeddings. `s` is the student, `t` the
teacher, `sg` the stop-gradient, `r` a random crop, `b` a base crop, `y` a position label and `l = relu(cos)`
the predicted similarity.

Shapes: B volumes, R random crops, N base crops, D embedding width. Every function computes in float32
whatever it is given, because `log(1 - |y - l|)` has its steepest part within a half-precision rounding error
of 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-6
"""Keeps the logarithm and the division finite; the published value."""


class VocoLosses(NamedTuple):
    """One value a volume for each term, (B,) float32. The step minimises the mean of `total` over volumes."""

    positive: Tensor
    negative: Tensor
    inter_positive: Tensor
    inter_negative: Tensor
    regulariser: Tensor

    @property
    def total(self) -> Tensor:
        """Sum of the terms with equal weights, as published."""
        return sum(self)


def cosine_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of every pair of embeddings.

    Args:
        first: (..., R, D).
        second: (..., N, D).

    Returns:
        float32 (..., R, N) in [-1, 1].
    """
    return F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).transpose(-2, -1)


def positive_loss(cosine: Tensor, label: Tensor) -> Tensor:
    """Pull the similarity of overlapping crops towards their overlap.

    `sum(y * (-log(1 - |y - l| + eps) + relu(-cos))) / (sum(y) + eps)` with `l = relu(cos)`.

    The logarithm is the published term. With the bare cosine it is undefined as soon as `y - cos > 1`; with
    `l = relu(cos)` it is always defined, but a positive whose cosine is negative then has no gradient and
    stays lost. `y * relu(-cos)`, zero wherever `cos >= 0`, gives such a pair the gradient `-y` that brings it
    back.

    Args:
        cosine: (..., R, N) in [-1, 1].
        label: (..., R, N) in [0, 1]; no gradient flows into it.

    Returns:
        float32 (...), at least `-eps`, which it reaches where `l == y` for every positive; 0 where no label
        is positive.
    """
    cosine, label = cosine.float(), label.detach().float()
    error = (label - cosine.relu()).abs()
    terms = label * (F.relu(-cosine) - torch.log1p(EPSILON - error))
    return terms.sum((-2, -1)) / (label.sum((-2, -1)) + EPSILON)


def negative_loss(cosine: Tensor, label: Tensor) -> Tensor:
    """Push crops that share no pixel apart: mean of `l^2` over the pairs with `y == 0`.

    Args:
        cosine: (..., R, N) in [-1, 1].
        label: (..., R, N) in [0, 1].

    Returns:
        float32 (...) in [0, 1]; 0 where every pair overlaps.
    """
    is_negative = label == 0
    squares = cosine.float().relu().square() * is_negative
    return squares.sum((-2, -1)) / is_negative.sum((-2, -1)).clamp(min=1)


def base_regulariser(bases: Tensor) -> Tensor:
    """Base crops of one volume must differ: mean over ordered pairs i != j of `relu(cos(b_i, sg b_j))^2`.

    Published as a mean over i < j, which gives the last base no gradient at all. Over both orders the value
    is the same, and every base is pushed from every other.

    Args:
        bases: (..., N, D) student embeddings of the base crops.

    Returns:
        float32 (...) in [0, 1]; 0 for orthogonal (or opposite) bases, and for a single one.
    """
    count = bases.shape[-2]
    squares = cosine_similarity(bases, bases.detach()).relu().square()
    others = ~torch.eye(count, dtype=torch.bool, device=bases.device)
    return (squares * others).sum((-2, -1)) / max(count * (count - 1), 1)


def voco_losses(student: Tensor, teacher: Tensor, label: Tensor) -> VocoLosses:
    """All terms of 2D-VoCo `v2` for a batch of volumes.

    Intra-volume: the student's random crops against the teacher's bases of the same volume, with the overlap
    as label. Inter-volume: volume i's random crops against the bases of volume `(i + 1) mod B`. What overlaps
    across patients is unknown, so the teacher's own `relu(cos)` is the label; without the relu no label would
    be exactly 0 and the negative term would be empty.

    Args:
        student: (B, R + N, D) embeddings, random crops first; B at least 2, or the inter-volume pair is the
            volume itself.
        teacher: (B, R + N, D) embeddings of the same crops; no gradient flows into them.
        label: (B, R, N) position labels.

    Raises:
        ValueError: fewer than two volumes.
    """
    if len(student) < 2:
        raise ValueError("the inter-volume loss needs at least two volumes in a batch")
    crops = label.shape[1]
    student_random, student_bases = student[:, :crops], student[:, crops:]
    teacher_random, teacher_bases = teacher[:, :crops].detach(), teacher[:, crops:].detach()

    intra = cosine_similarity(student_random, teacher_bases)
    inter = cosine_similarity(student_random, student_bases.roll(-1, dims=0))
    inter_label = cosine_similarity(teacher_random, teacher_bases.roll(-1, dims=0)).relu()
    return VocoLosses(
        positive=positive_loss(intra, label),
        negative=negative_loss(intra, label),
        inter_positive=positive_loss(inter, inter_label),
        inter_negative=negative_loss(inter, inter_label),
        regulariser=base_regulariser(student_bases),
    )
