"""Objective and monitors of `plus` on embeddings that are ready: as a run does, and by broadcasting."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from src.voco.comparisons import Comparisons, Embeddings, GlobalBases
from src.voco.losses import build_objective, placing_loss
from src.voco.monitors import Monitors
from src.voco.options import VocoOptions


def build_terms(options: VocoOptions) -> Callable[[], Tensor]:
    """Loss and gradient, monitors and similarity from shared products; the work returns the gradient."""
    embeddings, targets, label, patient = draw_embeddings(options)
    objective, monitors = build_objective(options), Monitors(options.batch)

    def compute() -> Tensor:
        embeddings.grad = None
        student, teacher = (Embeddings.split(each, options.random_crops) for each in (embeddings, targets))
        pairs = Comparisons(student, teacher, GlobalBases(student.bases, teacher.bases, first=0))
        terms = objective(pairs, label)
        monitors.update(pairs, label, patient, patient)
        pairs.own(pairs.forth.detach())
        sum(terms.values()).mean().backward()
        return embeddings.grad

    return compute


def build_broadcast_terms(options: VocoOptions) -> Callable[[], Tensor]:
    """The same, each cosine for itself: normalised at every use, crops and bases copied for every pair."""
    embeddings, targets, label, _ = draw_embeddings(options)
    crops, temperature, planes = options.random_crops, options.temperature, options.grid_z
    is_other = ~torch.eye(options.batch, dtype=torch.bool)

    def compute() -> Tensor:
        embeddings.grad = None
        pairs = ((embeddings[:, :crops], targets[:, crops:]), (targets[:, :crops], embeddings[:, crops:]))
        own = [placing_loss(label, cosine_similarity(*pair), temperature) for pair in pairs]
        of_all = [
            placing_loss(label[:, None], cosine_similarity(randoms[:, None], bases), temperature, planes)
            for randoms, bases in pairs
        ]
        among_others = (torch.stack(of_all).mean(0) * is_other).sum(1) / (options.batch - 1)
        with torch.no_grad():
            is_right = label == label.amax(-1, keepdim=True)
            randoms, bases = targets[:, :crops], targets[:, crops:]
            cosine_similarity(embeddings[:, :crops], bases)  # similarities of overlapping and other crops
            for similarity in (
                cosine_similarity(randoms, bases)[:, None],
                cosine_similarity(randoms[:, None], bases),  # (B, G, R, N)
            ):
                placed = similarity.argmax(-1, keepdim=True)
                is_right[:, None].expand_as(similarity).gather(-1, placed).sum()
            F.normalize(targets.flatten(0, 1), dim=-1).std(dim=0, correction=0).square().sum().sqrt()
            cosine_similarity(embeddings[:, :crops], bases)  # for pictures
        (torch.stack(own).mean(0) + among_others).mean().backward()
        return embeddings.grad

    return compute


def hold_embeddings(options: VocoOptions) -> Callable[[], Any]:
    """What both ways are given, without any work."""
    return partial(tuple, draw_embeddings(options))


def draw_embeddings(options: VocoOptions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings (B, R + N, D) of student and teacher, labels (B, R, N) and patients (B,)."""
    generator, bases = torch.Generator().manual_seed(0), options.grid_z * options.grid**2
    shape = (options.batch, options.random_crops + bases, options.projection)
    student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
    label = torch.rand(options.batch, options.random_crops, bases, generator=generator)
    patient = torch.arange(options.batch)
    return student.requires_grad_(), teacher, label / label.sum(-1, keepdim=True), patient


def cosine_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of every pair of (..., R, D) and (..., N, D): (..., R, N)."""
    return F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).mT
