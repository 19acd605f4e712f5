"""What a step minimises: the terms of `src/voco/losses.py` on the embeddings of a batch.

`s` is the student, `t` the teacher (never given a gradient), `r` a random crop, `b` a base crop. Every term
has one value a volume, (B,) float32; a step minimises the mean over volumes of their sum.

Shapes: B volumes of this process, G volumes of all processes, R random crops, N base crops, D embedding
width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from src.voco.losses import (
    base_regulariser,
    cosine_similarity,
    log_negatives,
    placing_loss,
    positive_loss,
    squared_negatives,
)
from src.voco.options import VocoOptions

NEGATIVES = {"square": squared_negatives, "log": log_negatives}

Objective = Callable[["Embeddings", "Embeddings", Tensor, "GlobalBases"], dict[str, Tensor]]


class Embeddings(NamedTuple):
    """What a network made of the crops of a batch."""

    randoms: Tensor
    """(B, R, D)"""
    bases: Tensor
    """(B, N, D)"""

    @classmethod
    def split(cls, embeddings: Tensor, crops: int) -> "Embeddings":
        """(B, R + N, D), the random crops first, with R = `crops`."""
        return cls(embeddings[:, :crops], embeddings[:, crops:])


class GlobalBases(NamedTuple):
    """The base crops of every process: (G, N, D) each, in the order of the global batch."""

    student: Tensor
    teacher: Tensor
    first: int
    """Place of this process's first volume among the G."""


@dataclass(frozen=True)
class OverlapObjective:
    """The published objective: predict the overlap itself.

    Intra-volume: random crops against the bases of their own volume, with the overlap as label. Inter-volume:
    volume i against the bases of volume `(i + 1) mod G`. What overlaps across patients is unknown, so the
    teacher's own `relu(cos)` is the label; without the relu no label would be exactly 0 and the negative term
    would be empty.
    """

    both_directions: bool
    """Predict by the mean of (s r, t b) and (t r, s b) (2D-VoCo v1, VoCo 3D), or by the first alone (v2)."""

    negatives: str
    """`square` or `log`."""

    inter_volume: bool

    def __call__(
        self, student: Embeddings, teacher: Embeddings, label: Tensor, everyone: GlobalBases
    ) -> dict[str, Tensor]:
        cosines = [cosine_similarity(student.randoms, teacher.bases)]
        if self.both_directions:
            cosines.append(cosine_similarity(teacher.randoms, student.bases))
        negative_loss = NEGATIVES[self.negatives]
        terms = {"positive": positive_loss(label, *cosines), "negative": negative_loss(label, *cosines)}
        if self.inter_volume:
            volumes = len(everyone.student)
            following = (everyone.first + 1 + torch.arange(len(label), device=label.device)) % volumes
            cosine = cosine_similarity(student.randoms, everyone.student[following])
            similar = cosine_similarity(teacher.randoms, everyone.teacher[following]).relu()
            terms["inter_positive"] = positive_loss(similar, cosine)
            terms["inter_negative"] = negative_loss(similar, cosine)
        return terms | {"regulariser": base_regulariser(student.bases)}


@dataclass(frozen=True)
class PlacingObjective:
    """Our own objective, `plus`: choose the right base by cross-entropy, in the own volume and in all others.

    The overlap label holds inside a volume exactly. Across patients it holds as far as bodies are alike: a
    crop in front on the patient's right shows liver in both. That is what makes the task anatomical: between
    patients no pixel is shared, so nothing but anatomy can be matched. Heights are not compared across
    patients, because scans begin and end at different places (`placing_loss` sums over the planes there).
    """

    temperature: float
    inter_volume: bool
    planes: int
    """Base crops along the body."""

    def __call__(
        self, student: Embeddings, teacher: Embeddings, label: Tensor, everyone: GlobalBases
    ) -> dict[str, Tensor]:
        own = [
            placing_loss(label, cosine_similarity(student.randoms, teacher.bases), self.temperature),
            placing_loss(label, cosine_similarity(teacher.randoms, student.bases), self.temperature),
        ]
        terms = {"placing": torch.stack(own).mean(0)}
        if self.inter_volume:
            terms["inter_placing"] = self._among_others(student, teacher, label, everyone)
        return terms

    def _among_others(
        self, student: Embeddings, teacher: Embeddings, label: Tensor, everyone: GlobalBases
    ) -> Tensor:
        volumes = len(everyone.student)
        own = everyone.first + torch.arange(len(label), device=label.device)
        is_other = torch.arange(volumes, device=label.device) != own[:, None]  # (B, G)
        losses = [
            placing_loss(
                label[:, None], cosine_similarity(randoms[:, None], bases), self.temperature, self.planes
            )  # (B, G)
            for randoms, bases in ((student.randoms, everyone.teacher), (teacher.randoms, everyone.student))
        ]
        return (torch.stack(losses).mean(0) * is_other).sum(1) / (volumes - 1)


def build_objective(options: VocoOptions) -> Objective:
    """The objective that the options ask for."""
    if options.objective == "softmax":
        return PlacingObjective(options.temperature, options.inter_volume, options.grid_z)
    return OverlapObjective(options.directions == "both", options.negatives, options.inter_volume)
