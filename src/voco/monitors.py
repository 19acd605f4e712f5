"""Monitors of pre-training: metrics of the embeddings of every batch, averaged between two log lines.

A falling loss proves little: crops of one patient share pixels, so that even random weights place about half
of the random crops correctly in the same patient. Placing a crop of one patient among the bases of another
cannot be done by matching pixels; `cross_placing` is therefore the metric to trust.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from src.voco.comparisons import Comparisons, cosines

COLLAPSE_STD = 0.03
"""If `embedding_std` is below, all crops get the same embedding: their mean cosine exceeds 0.999."""

_MEANS = (
    *("positive_similarity", "negative_similarity"),
    *("intra_placing", "cross_placing", "embedding_std"),
)
"""Metrics that are a sum divided by a count."""


class Monitors:
    """Sums over the batches since the last `read`, kept on the device so that no step waits for them.

    Args:
        patients: number of patients; `update` gets them as integers below it.
    """

    def __init__(self, patients: int, device: torch.device | str = "cpu") -> None:
        sizes = (2 * len(_MEANS), 3, 4 * patients)
        self.sums = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        """what `read` adds up over the processes; the next three are views of it"""
        ends = np.cumsum([0, *sizes])
        means, self._pairs, by_patient = (self.sums[start:end] for start, end in pairwise(ends))
        self._means, self._by_patient = means.view(-1, 2), by_patient.view(-1, 4)
        self.previous: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def update(self, pairs: Comparisons, label: Tensor, patient: Tensor, all_patients: Tensor) -> None:
        """Add a batch.

        Args:
            pairs: its comparisons. With a single volume in all processes, the bases of the previous step
                serve as another patient's.
            label: (B, R, N) position labels.
            patient: (B,) integers, equal for series of the same patient.
            all_patients: (G,) patients of the volumes of all processes.
        """
        predicted = pairs.own(pairs.forth.detach())  # (B, R, N), as in the loss
        is_apart = label == 0
        # placing and spread are measured on the teacher: the run saves the teacher, and it has no dropout
        is_right = label == label.amax(-1, keepdim=True)  # (B, R, N); two bases may share the largest overlap
        intra = _hits(pairs.own(pairs.of_teacher)[:, :, None], is_right)
        similarity, other_patients = pairs.of_teacher, all_patients
        if len(all_patients) == 1:
            bases, other_patients = self.previous or (pairs.all_bases.teacher, all_patients)
            similarity = cosines(pairs.teacher.randoms, bases)
            self.previous = (pairs.all_bases.teacher, all_patients)
        is_other = (patient[:, None] != other_patients).double()  # (B, G)
        hits = _hits(similarity, is_right).sum(1) * is_other  # (B, G), each of up to R trials
        trials = is_other * label.shape[1]
        spread = spread_of([pairs.teacher.randoms, pairs.teacher.bases])
        means = [
            (predicted * label).sum(),
            label.sum(),
            (predicted * is_apart).sum(),
            is_apart.sum(),
            intra.sum(),
            torch.ones_like(intra).sum(),
            hits.sum(),
            trials.sum(),
            spread,
            torch.ones_like(spread),
        ]
        self._means += torch.stack([value.double() for value in means]).view(-1, 2)
        self._pairs += torch.stack([(hits * hits).sum(), (hits * trials).sum(), (trials * trials).sum()])
        both = torch.stack([hits, trials], dim=-1)  # (B, G, 2)
        self._by_patient[:, :2].index_add_(0, patient, both.sum(1))
        self._by_patient[:, 2:].index_add_(0, other_patients, both.sum(0))

    def read(self, total: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """Return the metrics since the last call, and reset them.

        Args:
            total: adds up the sums of all processes.

        Returns:
            `cross_placing` and `intra_placing`, the share of random crops whose most similar base is the one
            they overlap most (chance is 1 / N), among another patient's bases and among their own;
            `cross_low`, `cross_high` (see `placing_interval`), `cross_trials` and `intra_trials` (a trial is
            one crop among one set of bases); `positive_similarity`, mean cosine weighted by overlap;
            `negative_similarity`, mean cosine of crops that do not overlap; `embedding_std`, root of the
            summed variance of unit embeddings over a batch's crops, 1 for evenly spread directions and 0 for
            a collapse. Metrics without trials are absent.
        """
        sums = total(self.sums).cpu().numpy().copy()
        self.sums.zero_()
        ends = np.cumsum([self._means.numel(), self._pairs.numel()])
        means, pairs, by_patient = np.split(sums, ends)
        totals = dict(zip(_MEANS, means.reshape(-1, 2).tolist(), strict=True))
        metrics = {name: value / count for name, (value, count) in totals.items() if count}
        metrics |= {f"{name}_trials": totals[f"{name}_placing"][1] for name in ("cross", "intra")}
        if metrics["cross_trials"]:
            interval = placing_interval(by_patient.reshape(-1, 4), pairs)
            metrics["cross_low"], metrics["cross_high"] = interval
        return metrics

    def forget_previous(self) -> None:
        """Drop the bases of the previous step, which a run resumed here would not have."""
        self.previous = None


def log_line(step: int, steps: int, metrics: dict[str, float]) -> str:
    """Format a row of metrics.csv for the terminal."""
    terms = ", ".join(
        f"{name.removeprefix('loss_')} {value:.3f}"
        for name, value in metrics.items()
        if name.startswith("loss_")
    )
    parts = ["step {step}/{steps}", "loss {loss:.3f} ({terms})", "lr {lr:.1e}"]
    if "intra_placing" in metrics:
        cross = "cross -"  # no trials, as with series of one patient
        if "cross_placing" in metrics:
            cross = "cross {cross_placing:.2f} [{cross_low:.2f}, {cross_high:.2f}] of {cross_trials:.0f}"
        parts.append(f"placing: {cross}, intra {{intra_placing:.2f}} of {{intra_trials:.0f}}")
        parts.append("similarity {positive_similarity:.2f} / {negative_similarity:.2f}")
    parts += ["std {embedding_std:.2f}", "teacher {teacher_distance:.1e}", "{volumes_per_s:.1f} volumes/s"]
    # a task without negatives (every crop overlaps every base) has no such metric
    defaults = {"negative_similarity": float("nan"), "positive_similarity": float("nan")}
    return "  ".join(parts).format_map(defaults | metrics | {"step": step, "steps": steps, "terms": terms})


def placing_interval(by_patient: np.ndarray, pairs: np.ndarray) -> tuple[float, float]:
    """95 % interval of the share of hits over the population of patients, for these weights.

    Trials are not independent: they share the patient of the crops, or of the bases. The variance is that of
    a ratio clustered by the patients of both roles (Fafchamps and Gubert 2007; Cameron, Gelbach and Miller
    2011); resampling the patients would need the trials of every pair of patients. Wilson's interval of as
    many independent trials as have that variance keeps the ends within 0 and 1.

    Args:
        by_patient: (patients, 4): hits and trials of the patient's crops, hits and trials with its bases.
        pairs: sums over the pairs of volumes of hits^2, hits * trials and trials^2.
    """
    hits, trials = by_patient[:, :2].sum(0)
    share = hits / trials
    patients = int((by_patient[:, 1] + by_patient[:, 3] > 0).sum())
    if hits in (0, trials):  # no variance to measure: one trial per patient is the cautious choice
        return wilson_interval(share * patients, patients)
    residuals = by_patient[:, 0] + by_patient[:, 2] - share * (by_patient[:, 1] + by_patient[:, 3])
    of_pairs = pairs @ (1, -2 * share, share**2)  # they are in the clusters of both of their patients
    variance = (residuals @ residuals - of_pairs) / trials**2 * patients / (patients - 1)
    independent = share * (1 - share) / trials
    effective = trials * independent / max(variance, independent)
    return wilson_interval(share * effective, effective, stdtrit(patients - 1, 0.975))


def wilson_interval(hits: float, trials: float, z_score: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a proportion of independent trials (Wilson 1927), 95 % by default."""
    share, spread = hits / trials, z_score**2 / trials
    middle = share + spread / 2
    half = z_score * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


def _hits(similarity: Tensor, is_right: Tensor) -> Tensor:
    """Return whether the most similar base of (B, R, G, N) is a right one of (B, R, N): bool (B, R, G)."""
    return is_right.gather(-1, similarity.argmax(-1))


def spread_of(parts: list[Tensor]) -> Tensor:
    """Root of the summed variance of unit embeddings (..., D) of all parts together, ()."""
    count = sum(part[..., 0].numel() for part in parts)
    squares = sum(torch.linalg.vector_norm(part).square() for part in parts)  # 0 for embeddings of length 0
    mean = sum(part.flatten(0, -2).sum(0) for part in parts) / count
    return (squares / count - mean.square().sum()).clamp(min=0).sqrt()
