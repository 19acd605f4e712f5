"""Losses of pre-training: the terms of contextual position prediction, their objectives, and SimCLR's loss.

Sources: VoCo (arXiv 2402.17300) for the overlap terms, large-scale VoCo (arXiv 2410.09890) for the
logarithmic negatives, 2D-VoCo (arXiv 2601.14593) for their use on slab embeddings, SimCLR (arXiv 2002.05709)
for `contrast_loss`; `PlacingObjective` is our own. `y` is a position label, `cos` the cosine similarity of
two projections and `l = relu(cos)` the predicted similarity; `s` is the student, `t` the teacher (which gets
no gradient), `r` a random crop, `b` a base crop.

Shapes: B volumes of this process, G volumes of all processes, R random crops, N base crops, D embedding
width; `...` is usually B. Each term has one value per volume, and a step minimises the mean over volumes of
their sum. All terms are computed in float32 for any input type, because `log(1 - |y - l|)` is steepest within
a half-precision rounding error of 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from src.voco.comparisons import Comparisons
from src.voco.options import VocoOptions

EPSILON = 1e-6
"""Keeps the logarithm and the division finite; the published value."""


def positive_loss(label: Tensor, *cosines: Tensor) -> Tensor:
    """Pull the similarity of overlapping crops towards their overlap.

    `sum(y * (-log(1 - |y - l| + eps) + relu(-cos))) / (sum(y) + eps)` with `l = relu(cos)`; with several
    cosines (student to teacher, teacher to student) `l` and `relu(-cos)` are their means.

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
    """Push crops apart by `-log(1 - l + eps)`, which is much steeper than `l^2` near 1 (large-scale VoCo).

    Returns:
        float32 (...), from 0 (`-eps` to be exact) to `-log(eps)`; 0 where every pair overlaps.
    """
    return _mean_where(label == 0, -torch.log1p(EPSILON - _mean_relu(cosines)))


def base_regulariser(bases: Tensor) -> Tensor:
    """Push base crops of one volume apart: mean over ordered pairs i != j of `relu(cos(b_i, sg b_j))^2`.

    The published mean over i < j gives the last base no gradient. Over both orders the value is
    the same, and every base is pushed away from every other.

    Args:
        bases: (..., N, D) student embeddings of the base crops, of unit length.

    Returns:
        float32 (...) in [0, 1]; 0 for orthogonal (or opposite) bases, and for a single one.
    """
    others = ~torch.eye(bases.shape[-2], dtype=torch.bool, device=bases.device)
    return _mean_where(others, (bases @ bases.detach().mT).relu().square())


def placing_loss(label: Tensor, cosine: Tensor, temperature: float, planes: int = 1) -> Tensor:
    """Choose the right base among all: cross-entropy between the label and `softmax(cos / temperature)`.

    The bases of a row compete, so that a crop is placed by what distinguishes them, and pairs with label 0
    need no separate term.

    Args:
        label: (..., R, N), rows that sum to 1; no gradient flows into it.
        cosine: (..., R, N) in [-1, 1].
        temperature: above 0.
        planes: number of equal groups of the N bases, one per height. Label and prediction are summed over
            the planes, so that height does not count; with 1, every base counts.

    Returns:
        float32 (...), mean over the R crops; at least the mean entropy of the labels.
    """
    log_probability = F.log_softmax(cosine.float() / temperature, dim=-1)
    if planes > 1:
        log_probability = log_probability.unflatten(-1, (planes, -1)).logsumexp(dim=-2)
        label = label.unflatten(-1, (planes, -1)).sum(dim=-2)
    return -(label.detach().float() * log_probability).sum(-1).mean(-1)


def contrast_loss(views: Tensor, all_views: Tensor, first: int, temperature: float) -> Tensor:
    """Find the other view of the same crop among all other views of the batch: SimCLR's NT-Xent.

    Args:
        views: (B, 2V, D) of unit length: a view of each of V crops, then the other of each.
        all_views: (G, 2V, D), those of all processes.
        first: index of this process's first volume among the G volumes.
        temperature: above 0.

    Returns:
        float32 (B,), mean over the views of a volume.
    """
    logits = views.flatten(0, 1) @ all_views.flatten(0, 1).T / temperature  # (B * 2V, G * 2V)
    itself = torch.arange(len(logits), device=logits.device) + first * views.shape[1]
    logits = logits.scatter(1, itself[:, None], float("-inf"))
    other = itself.view(views.shape[:2]).roll(views.shape[1] // 2, dims=1)
    return F.cross_entropy(logits, other.flatten(), reduction="none").view(other.shape).mean(1)


NEGATIVES = {"square": squared_negatives, "log": log_negatives}

Objective = Callable[[Comparisons, Tensor], dict[str, Tensor]]
"""Returns the terms, each (B,), of comparisons and labels (B, R, N)."""


@dataclass(frozen=True)
class OverlapObjective:
    """The published objective: predict the overlap itself.

    Intra-volume: random crops against the bases of their own volume, with the overlap as label. Inter-volume:
    volume i against the bases of volume `(i + 1) mod G`. The overlap across patients is unknown, so the
    teacher's own `relu(cos)` is the label; without the relu no label would be exactly 0 and the negative term
    would be empty.
    """

    both_directions: bool
    """predict with the mean of (s r, t b) and (t r, s b) (2D-VoCo v1, VoCo 3D), or the first alone (v2)"""

    negatives: str
    """`square` or `log`"""

    inter_volume: bool

    def __call__(self, pairs: Comparisons, label: Tensor) -> dict[str, Tensor]:
        directions = (pairs.forth, pairs.back) if self.both_directions else (pairs.forth,)
        own = [pairs.own(cosine) for cosine in directions]
        negative_loss = NEGATIVES[self.negatives]
        terms = {"positive": positive_loss(label, *own), "negative": negative_loss(label, *own)}
        if self.inter_volume:
            cosine, of_teacher = pairs.following()
            similar = of_teacher.relu()
            terms["inter_positive"] = positive_loss(similar, cosine)
            terms["inter_negative"] = negative_loss(similar, cosine)
        return terms | {"regulariser": base_regulariser(pairs.student.bases)}


@dataclass(frozen=True)
class PlacingObjective:
    """Our own objective, `plus` (`--objective softmax`): choose the right base by cross-entropy, in the same
    volume and in all others.

    The overlap label is exact inside a volume. Across patients it holds as far as bodies are alike: a crop in
    front on the patient's right shows liver in both. This makes the task anatomical: patients share no pixel,
    so only anatomy can be matched. Heights are not compared across patients, because scans begin and end at
    different places (`placing_loss` sums over the planes there).
    """

    temperature: float
    inter_volume: bool
    planes: int
    """number of base crops along the body"""

    def __call__(self, pairs: Comparisons, label: Tensor) -> dict[str, Tensor]:
        directions = pairs.forth, pairs.back
        placings = [placing_loss(label, pairs.own(cosine), self.temperature) for cosine in directions]
        terms = {"placing": torch.stack(placings).mean(0)}
        if self.inter_volume:
            is_other = pairs.others()  # (B, G)
            of_all = [
                placing_loss(label[:, None], cosine.transpose(1, 2), self.temperature, self.planes)  # (B, G)
                for cosine in directions
            ]
            terms["inter_placing"] = (torch.stack(of_all).mean(0) * is_other).sum(1) / (is_other.shape[1] - 1)
        return terms


def build_objective(options: VocoOptions) -> Objective:
    """Create the objective of `--objective`, with its options."""
    if options.objective == "softmax":
        return PlacingObjective(options.temperature, options.inter_volume, options.grid_z)
    return OverlapObjective(options.directions == "both", options.negatives, options.inter_volume)


def _mean_relu(cosines: Sequence[Tensor]) -> Tensor:
    return torch.stack([cosine.float().relu() for cosine in cosines]).mean(0)


def _mean_where(chosen: Tensor, values: Tensor) -> Tensor:
    """Mean of the chosen values over the last two axes; 0 if none is chosen."""
    return (values * chosen).sum((-2, -1)) / chosen.sum((-2, -1)).clamp(min=1)
