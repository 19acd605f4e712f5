"""Cosines of the crops of a batch, each pair computed once for the losses, the monitors and the pictures.

Shapes: B volumes of this process, G volumes of all processes, R random crops, N base crops, D embedding
width. Embeddings are normalised once, in `Embeddings.split`, so that a cosine is a product. Everything is
float32 for any input type: losses are steepest within a half-precision rounding error of 1.
"""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Embeddings(NamedTuple):
    """Embeddings of unit length, float32, of the crops of a batch by one network."""

    randoms: Tensor
    """(B, R, D)"""
    bases: Tensor
    """(B, N, D)"""

    @classmethod
    def split(cls, embeddings: Tensor, crops: int) -> "Embeddings":
        """Split and normalise (B, R + N, D) of any length, the random crops first, with R = `crops`."""
        parts = embeddings.split([crops, embeddings.shape[1] - crops], dim=1)
        return cls(*map(_unit, parts))


class GlobalBases(NamedTuple):
    """Base crops of all processes, of unit length: (G, N, D) each, in the order of the global batch."""

    student: Tensor
    teacher: Tensor
    first: int
    """index of this process's first volume among the G volumes"""


class Comparisons:
    """Cosines of the random crops of this process with the base crops of all processes.

    Each attribute is one matrix product (B * R, D) x (D, G * N). The cosines with a volume's own bases are
    its diagonal blocks, which `own` returns.
    """

    def __init__(self, student: Embeddings, teacher: Embeddings, all_bases: GlobalBases) -> None:
        self.student, self.teacher, self.all_bases = student, teacher, all_bases
        self.forth = cosines(student.randoms, all_bases.teacher)
        """(B, R, G, N): random crops of the student, bases of the teacher; with the student's graph"""

    @cached_property
    def back(self) -> Tensor:
        """(B, R, G, N): random crops of the teacher, bases of the student; with the student's graph."""
        return cosines(self.teacher.randoms, self.all_bases.student)

    @cached_property
    def of_teacher(self) -> Tensor:
        """(B, R, G, N): both of the teacher, without a graph."""
        return cosines(self.teacher.randoms.detach(), self.all_bases.teacher.detach())

    def own(self, cosine: Tensor) -> Tensor:
        """Return the cosines (B, R, N) of (B, R, G, N) with the bases of each crop's own volume."""
        first = self.all_bases.first
        blocks = cosine[:, :, first : first + len(cosine)].diagonal(dim1=0, dim2=2)  # (R, N, B)
        return blocks.permute(2, 0, 1)

    def others(self) -> Tensor:
        """Return which of the G volumes is another than each of the B volumes: bool (B, G)."""
        volumes, device = len(self.all_bases.teacher), self.forth.device
        places = self.all_bases.first + torch.arange(len(self.forth), device=device)
        return torch.arange(volumes, device=device) != places[:, None]

    def following(self) -> tuple[Tensor, Tensor]:
        """Return the cosines (B, R, N) with the volume that follows in the global batch, of student crops
        with student bases, and of teacher crops with teacher bases."""
        places = torch.arange(len(self.forth), device=self.forth.device)
        after = (self.all_bases.first + 1 + places) % len(self.all_bases.student)
        student = self.student.randoms @ self.all_bases.student[after].mT
        return student, self.teacher.randoms @ self.all_bases.teacher[after].mT


def cosines(crops: Tensor, bases: Tensor) -> Tensor:
    """Return the cosines (B, R, G, N) of crops (B, R, D) and bases (G, N, D), all of unit length."""
    product = crops.flatten(0, 1) @ bases.flatten(0, 1).T  # (B * R, G * N)
    return product.unflatten(1, bases.shape[:2]).unflatten(0, crops.shape[:2])


def _unit(embeddings: Tensor) -> Tensor:
    """Normalise (..., D); multiplying takes a third less memory in the backward pass than `F.normalize`."""
    embeddings = embeddings.float()
    length = torch.linalg.vector_norm(embeddings, dim=-1, keepdim=True).clamp(min=1e-12)
    return embeddings * length.reciprocal()
