"""The terms of contextual position prediction, each reduced per volume.

Sources: VoCo (arXiv 2402.17300) for the overlap terms, large-scale VoCo (arXiv 2410.09890) for the
logarithmic negatives, 2D-VoCo (arXiv 2601.14593) for their use on slab embeddings. `src/voco/objectives.py`
puts them together. `y` is a position label, `cos` the cosine similarity of two projections and
`l = relu(cos)` the predicted similarity.

Shapes: R random crops, N base crops, D embedding width; `...` is usually the B volumes. Every function
computes in float32 whatever it is given, because `log(1 - |y - l|)` has its steepest part within a
half-precision rounding error of 1.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-6
"""Keeps the logarithm and the division finite; the published value."""


def cosine_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of every pair of embeddings.

    Args:
        first: (..., R, D).
        second: (..., N, D).

    Returns:
        float32 (..., R, N) in [-1, 1].
    """
    return F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).transpose(-2, -1)


def positive_loss(label: Tensor, *cosines: Tensor) -> Tensor:
    """Pull the similarity of overlapping crops towards their overlap.

    `sum(y * (-log(1 - |y - l| + eps) + relu(-cos))) / (sum(y) + eps)` with `l = relu(cos)`; of several
    cosines (student to teacher, teacher to student) `l` and `relu(-cos)` are the means.

    The logarithm is the published term. With the bare cosine it is undefined as soon as `y - cos > 1`; with
    `l = relu(cos)` it is always defined, but a positive whose cosine is negative then has no gradient and
    stays lost. `y * relu(-cos)`, zero wherever `cos >= 0`, gives such a pair the gradient `-y` that brings it
    back.

    Args:
        label: (..., R, N) in [0, 1]; no gradient flows into it.
        cosines: (..., R, N) each, in [-1, 1].

    Returns:
        float32 (...), at least `-eps`, which it reaches where `l == y` for every positive; 0 where no label
        is positive.
    """
    label = label.detach().float()
    error = (label - _mean_relu(cosines)).abs()
    opposed = _mean_relu([-cosine for cosine in cosines])
    terms = label * (opposed - torch.log1p(EPSILON - error))
    return terms.sum((-2, -1)) / (label.sum((-2, -1)) + EPSILON)


def squared_negatives(label: Tensor, *cosines: Tensor) -> Tensor:
    """Push crops that share no pixel apart: mean of `l^2` over the pairs with `y == 0`.

    Args:
        label: (..., R, N) in [0, 1].
        cosines: (..., R, N) each, in [-1, 1]; `l` is the mean of their relu.

    Returns:
        float32 (...) in [0, 1]; 0 where every pair overlaps.
    """
    return _mean_where(label == 0, _mean_relu(cosines).square())


def log_negatives(label: Tensor, *cosines: Tensor) -> Tensor:
    """The same by `-log(1 - l + eps)`, which grows without bound where `l^2` is mild (large-scale VoCo).

    Returns:
        float32 (...), from 0 (`-eps` to be exact) to `-log(eps)`; 0 where every pair overlaps.
    """
    return _mean_where(label == 0, -torch.log1p(EPSILON - _mean_relu(cosines)))


def base_regulariser(bases: Tensor) -> Tensor:
    """Base crops of one volume must differ: mean over ordered pairs i != j of `relu(cos(b_i, sg b_j))^2`.

    Published as a mean over i < j, which gives the last base no gradient at all. Over both orders the value
    is the same, and every base is pushed from every other.

    Args:
        bases: (..., N, D) student embeddings of the base crops.

    Returns:
        float32 (...) in [0, 1]; 0 for orthogonal (or opposite) bases, and for a single one.
    """
    others = ~torch.eye(bases.shape[-2], dtype=torch.bool, device=bases.device)
    return _mean_where(others, cosine_similarity(bases, bases.detach()).relu().square())


def placing_loss(label: Tensor, cosine: Tensor, temperature: float, planes: int = 1) -> Tensor:
    """Choose the right base among all: cross-entropy between the label and `softmax(cos / temperature)`.

    Each row competes among its bases, so that a crop is placed by what sets it apart there, and a label of 0
    needs no loss of its own.

    Args:
        label: (..., R, N), rows that sum to 1; no gradient flows into it.
        cosine: (..., R, N) in [-1, 1].
        temperature: above 0.
        planes: the N bases are `planes` equal groups of one height each, and the height does not count: label
            and prediction are summed over the planes. 1 makes every base count.

    Returns:
        float32 (...), mean over the R crops; at least the mean entropy of the labels.
    """
    log_probability = F.log_softmax(cosine.float() / temperature, dim=-1)
    if planes > 1:
        log_probability = log_probability.unflatten(-1, (planes, -1)).logsumexp(dim=-2)
        label = label.unflatten(-1, (planes, -1)).sum(dim=-2)
    return -(label.detach().float() * log_probability).sum(-1).mean(-1)


def _mean_relu(cosines) -> Tensor:
    return torch.stack([cosine.float().relu() for cosine in cosines]).mean(0)


def _mean_where(chosen: Tensor, values: Tensor) -> Tensor:
    """Mean over the last two axes of the chosen values, 0 where none is."""
    return (values * chosen).sum((-2, -1)) / chosen.sum((-2, -1)).clamp(min=1)
