"""Bootstrap intervals over patients (Efron 1979): how far a score or a difference could move by chance.

A resample only changes how often each patient counts, so every round is a product of counts with per-patient
loss terms: a thousand rounds over thousands of patients take about a second.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.score.metric import LossTerms, loss_terms

_ROUNDS_AT_ONCE = 256  # limits memory: 256 rounds of 3,000 patients are 6 MB


@dataclass(frozen=True)
class Interval:
    """Percentile interval at `level`; `observed` is the value itself, `mean` its mean over the resamples."""

    observed: float
    mean: float
    low: float
    high: float
    level: float


def bootstrap_score(
    labels: pd.DataFrame, predictions: pd.DataFrame, rounds: int = 1000, seed: int = 0, level: float = 0.9
) -> Interval:
    """Return the interval of the score."""
    terms = loss_terms(labels, predictions)
    rounds_of_scores = [
        terms.average(counts).mean(axis=1) for counts in _resampled_counts(len(labels), rounds, seed)
    ]
    return _interval(terms.average(np.ones(len(labels))).mean(), np.concatenate(rounds_of_scores), level)


def bootstrap_difference(
    labels: pd.DataFrame,
    a: pd.DataFrame,
    b: pd.DataFrame,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.9,
) -> Interval:
    """Return the interval of `score(a) - score(b)`, paired: both are scored on the same resampled patients.

    A negative difference means that `a` is better. If the interval excludes 0, sampling of patients alone is
    an unlikely explanation.
    """
    return difference_interval(loss_terms(labels, a), loss_terms(labels, b), rounds, seed, level)


def difference_interval(
    a: LossTerms, b: LossTerms, rounds: int = 1000, seed: int = 0, level: float = 0.9
) -> Interval:
    """Return the interval of `score(a) - score(b)` from the losses of the same patients."""
    patients = len(a.weights)
    differences = [
        (a.average(counts) - b.average(counts)).mean(axis=1)
        for counts in _resampled_counts(patients, rounds, seed)
    ]
    once_each = np.ones(patients)
    observed = (a.average(once_each) - b.average(once_each)).mean()
    return _interval(observed, np.concatenate(differences), level)


def _resampled_counts(patients: int, rounds: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks of shape (rounds, patients): how often each patient is drawn, with replacement."""
    rng = np.random.default_rng(seed)
    shares = np.full(patients, 1 / patients)
    for first in range(0, rounds, _ROUNDS_AT_ONCE):
        yield rng.multinomial(patients, shares, size=min(_ROUNDS_AT_ONCE, rounds - first)).astype(np.float64)


def _interval(observed: float, resampled: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(observed), float(resampled.mean()), float(low), float(high), level)
