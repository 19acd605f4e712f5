"""Is pre-training healthy? Figures of the embeddings of every batch, averaged between two log lines.

A falling loss proves little: crops of one patient share pixels, so that even random weights place about half
of the random crops right inside the same patient. Placing a crop of one patient among the bases of another
cannot be done by matching pixels; `cross_placing` is therefore the figure to trust.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from src.voco.losses import cosine_similarity

COLLAPSE_STD = 0.03
"""`embedding_std` below this means that every crop gets the same embedding: the mean cosine exceeds 0.999."""


class Monitors:
    """Running sums over the batches since the last `read`, kept on the device so that a step waits for
    nothing."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, student: Tensor, teacher: Tensor, label: Tensor, patient: Tensor) -> None:
        """Add a batch.

        Args:
            student: (B, R + N, D) embeddings, R random crops first, then N bases.
            teacher: (B, R + N, D) embeddings of the same crops.
            label: (B, R, N) position labels.
            patient: (B,) integers, equal for series of one patient.
        """
        crops = label.shape[1]
        predicted = cosine_similarity(student[:, :crops], teacher[:, crops:])  # (B, R, N), as in the loss
        self._add("positive_similarity", predicted * label, label)
        self._add("negative_similarity", predicted * (label == 0), label == 0)

        # placing and spread are the teacher's: it is what the run saves, and no dropout blurs it
        is_right = label == label.amax(-1, keepdim=True)  # (B, R, N); two bases may share the largest overlap
        similarity = cosine_similarity(teacher[:, None, :crops], teacher[None, :, crops:])  # (B, B, R, N)
        placed = similarity.argmax(-1, keepdim=True)  # (B, B, R, 1)
        hits = is_right[:, None].expand_as(similarity).gather(-1, placed).squeeze(-1)  # (B, B, R)
        is_self = torch.eye(len(label), dtype=torch.bool, device=label.device)
        is_other = patient[:, None] != patient[None, :]
        for name, pairs in (("intra", is_self), ("cross", is_other)):
            chosen = pairs[:, :, None].expand_as(hits)
            self._add(f"{name}_placing", hits & chosen, chosen)

        directions = F.normalize(teacher.float().flatten(0, 1), dim=-1)  # (B * (R + N), D)
        spread = directions.std(dim=0, correction=0).square().sum().sqrt()
        self._add("embedding_std", spread, torch.ones_like(spread))

    def read(self) -> dict[str, float]:
        """The figures since the last call, which starts them anew.

        Returns:
            `cross_placing` and `intra_placing`, the share of random crops whose most similar base is the one
            they overlap most (chance is 1 / N), among another patient's bases and among their own;
            `cross_low`, `cross_high`, `cross_trials` and `intra_trials` (a trial is one crop among one set of
            bases); `positive_similarity`, mean cosine weighted by overlap; `negative_similarity`, mean cosine
            of crops that do not overlap; `embedding_std`, root of the summed variance of unit embeddings over
            a batch's crops, 1 for directions in balance and 0 for a collapse. Figures without trials are
            absent.
        """
        totals = {name: pair.tolist() for name, pair in self.sums.items()}
        self.sums = {}
        figures = {name: value / count for name, (value, count) in totals.items() if count}
        for name in ("cross", "intra"):
            hits, trials = totals.get(f"{name}_placing", (0.0, 0.0))
            figures[f"{name}_trials"] = trials
            if name == "cross" and trials:
                figures["cross_low"], figures["cross_high"] = wilson_interval(hits, trials)
        return figures

    def _add(self, name: str, values: Tensor, counts: Tensor) -> None:
        pair = torch.stack([values.sum().double(), counts.sum().double()])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair


def wilson_interval(hits: float, trials: float, z_score: float = 1.96) -> tuple[float, float]:
    """Interval of a share (Wilson 1927), 95 % by default.

    It takes the trials for independent. Those of one crop among several patients are not quite, so that the
    true interval is somewhat wider.
    """
    share, spread = hits / trials, z_score**2 / trials
    middle = share + spread / 2
    half = z_score * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)
