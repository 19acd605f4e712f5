"""Monitors of pre-training: metrics of the embeddings of every batch, averaged between two log lines.

A falling loss proves little: crops of one patient share pixels, so that even random weights place about half
of the random crops correctly in the same patient. Placing a crop of one patient among the bases of another
cannot be done by matching pixels; `cross_placing` is therefore the metric to trust.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from src.voco.losses import Embeddings, cosine_similarity

COLLAPSE_STD = 0.03
"""If `embedding_std` is below, all crops get the same embedding: their mean cosine exceeds 0.999."""


class Monitors:
    """Sums over the batches since the last `read`, kept on the device so that no step waits for them."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.previous: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def update(
        self,
        student: Embeddings,
        teacher: Embeddings,
        label: Tensor,
        patient: Tensor,
        all_bases: Tensor,
        all_patients: Tensor,
    ) -> None:
        """Add a batch.

        Args:
            student, teacher: embeddings of the crops of B volumes.
            label: (B, R, N) position labels.
            patient: (B,) integers, equal for series of the same patient.
            all_bases: (G, N, D) the teacher's bases of all processes, including those of `teacher`. With a
                single volume, the bases of the previous step serve as another patient's.
            all_patients: (G,) patients of `all_bases`.
        """
        predicted = cosine_similarity(student.randoms, teacher.bases)  # (B, R, N), as in the loss
        self._add("positive_similarity", predicted * label, label)
        self._add("negative_similarity", predicted * (label == 0), label == 0)

        # placing and spread are measured on the teacher: the run saves the teacher, and it has no dropout
        is_right = label == label.amax(-1, keepdim=True)  # (B, R, N); two bases may share the largest overlap
        cosine = cosine_similarity(teacher.randoms, teacher.bases)  # (B, R, N)
        self._add_placing(
            "intra", cosine, is_right, torch.ones(len(label), dtype=torch.bool, device=cosine.device)
        )
        others, other_patients = all_bases, all_patients
        if len(all_bases) == 1:
            others, other_patients = self.previous or (all_bases, all_patients)
            self.previous = (all_bases, all_patients)
        similarity = cosine_similarity(teacher.randoms[:, None], others)  # (B, G, R, N)
        is_other = patient[:, None] != other_patients[None, :]  # (B, G)
        self._add_placing("cross", similarity, is_right[:, None].expand_as(similarity), is_other)

        crops = torch.cat([teacher.randoms, teacher.bases], dim=1).flatten(0, 1)  # (B * (R + N), D)
        directions = F.normalize(crops.float(), dim=-1)
        spread = directions.std(dim=0, correction=0).square().sum().sqrt()
        self._add("embedding_std", spread, torch.ones_like(spread))

    def read(self, total: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """Return the metrics since the last call, and reset them.

        Args:
            total: adds up the sums of all processes.

        Returns:
            `cross_placing` and `intra_placing`, the share of random crops whose most similar base is the one
            they overlap most (chance is 1 / N), among another patient's bases and among their own;
            `cross_low`, `cross_high`, `cross_trials` and `intra_trials` (a trial is one crop among one set of
            bases); `positive_similarity`, mean cosine weighted by overlap; `negative_similarity`, mean cosine
            of crops that do not overlap; `embedding_std`, root of the summed variance of unit embeddings over
            a batch's crops, 1 for evenly spread directions and 0 for a collapse. Metrics without trials are
            absent.
        """
        sums = total(torch.stack(list(self.sums.values())))  # (metrics, 2)
        totals = dict(zip(self.sums, sums.tolist(), strict=True))
        self.sums = {}
        metrics = {name: value / count for name, (value, count) in totals.items() if count}
        for name in ("cross", "intra"):
            hits, trials = totals.get(f"{name}_placing", (0.0, 0.0))
            metrics[f"{name}_trials"] = trials
            if name == "cross" and trials:
                metrics["cross_low"], metrics["cross_high"] = wilson_interval(hits, trials)
        return metrics

    def forget_previous(self) -> None:
        """Drop the bases of the previous step, which a run resumed here would not have."""
        self.previous = None

    def _add_placing(self, name: str, similarity: Tensor, is_right: Tensor, is_trial: Tensor) -> None:
        """Count the crops (..., R, N) whose most similar base is a right one, where `is_trial` (...)."""
        placed = similarity.argmax(-1, keepdim=True)  # (..., R, 1)
        hits = is_right.gather(-1, placed).squeeze(-1)  # (..., R)
        chosen = is_trial[..., None].expand_as(hits)
        self._add(f"{name}_placing", hits & chosen, chosen)

    def _add(self, name: str, values: Tensor, counts: Tensor) -> None:
        pair = torch.stack([values.sum().double(), counts.sum().double()])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair


def wilson_interval(hits: float, trials: float, z_score: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a proportion (Wilson 1927), 95 % by default.

    It assumes independent trials. Those of one crop among several patients are not fully independent, so that
    the true interval is somewhat wider.
    """
    share, spread = hits / trials, z_score**2 / trials
    middle = share + spread / 2
    half = z_score * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)
