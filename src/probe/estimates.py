"""A measured figure with its trials, its chance and its interval.

Crops of one patient are not independent, so intervals come from a bootstrap over patients (Efron 1979). Of
fewer than `FEW` patients it says nothing; what is resampled then (draws of crops, blocks of slices) is named
with the figure, and such an interval speaks of these patients alone.
"""

from dataclasses import dataclass

import numpy as np

ROUNDS = 1000
LEVEL = 0.95
FEW = 5
"""Patients below which a bootstrap over patients says nothing."""


@dataclass(frozen=True)
class Figure:
    """One result."""

    value: float
    low: float | None
    high: float | None
    """of the 95 % interval; None where there is nothing to resample"""
    over: str
    """what the interval resamples: patients, draws or blocks"""
    chance: float
    """what a network that sees nothing gets"""
    trials: int
    patients: int


def resampled_counts(units: int, seed: int) -> np.ndarray:
    """How often each unit is drawn, with replacement, in each of `ROUNDS` rounds: float64 (ROUNDS, units)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), size=ROUNDS).astype(np.float64)


def percentile_interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """The middle 95 % of the resampled values; a round without a trial is nan and left out.

    (None, None) where fewer than half of the rounds have a value, or all have the same.
    """
    values = values[np.isfinite(values)]
    if 2 * len(values) < ROUNDS or np.ptp(values) == 0:
        return None, None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """`numerator / denominator`, nan where there is nothing to divide by."""
    safe = np.where(denominator > 0, denominator, 1)
    return np.where(denominator > 0, numerator / safe, np.nan)
