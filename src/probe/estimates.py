"""An estimate with its trials, chance level and confidence interval.

Crops of one patient are not independent, so intervals come from a bootstrap over patients (Efron 1979). With
fewer than `FEW` patients that is meaningless: draws of crops or blocks of slices are resampled instead, as
`Estimate.over` records, and such an interval is valid for these patients only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from src.core.log import format_table

ROUNDS = 1000
LEVEL = 0.95
FEW = 5
"""Number of patients below which a bootstrap over patients is meaningless."""


@dataclass(frozen=True)
class Estimate:
    """One result."""

    value: float
    low: float | None
    high: float | None
    """ends of the 95 % interval; None if there is nothing to resample"""
    over: str
    """unit that the interval resamples: patients, draws or blocks"""
    chance: float
    """value of a network that ignores its input"""
    trials: int
    patients: int
    by_patient: dict[str, float] = field(default_factory=dict)
    """the same figure of each patient alone"""
    resampled: tuple[float, ...] = field(default=(), repr=False)
    """value of each round of the bootstrap; with one seed, other networks resample the same units"""


def paired_rounds(a: Mapping[str, float], b: Mapping[str, float], seed: int) -> np.ndarray | None:
    """Return the mean of `a` - `b` over patients in each round of a bootstrap that resamples them in pairs.

    Args:
        a, b: values by patient; those of patients in only one of them are not used.

    Returns:
        float64 (ROUNDS,), or None with fewer than `FEW` patients.
    """
    gaps = np.array([value - b[name] for name, value in a.items() if name in b])
    if len(gaps) < FEW:
        return None
    return resampled_counts(len(gaps), seed) @ gaps / len(gaps)


def format_estimates(estimates: Mapping[str, Estimate]) -> str:
    """Return a table of estimates, without the values of each patient."""
    rows = [{"figure": name, **plain} for name, plain in plain_estimates(estimates).items()]
    for row in rows:
        del row["by_patient"]
    return format_table(rows, digits=3)


def plain_estimates(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    """Return estimates as plain values, without the rounds of their bootstrap."""
    plain = {name: asdict(estimate) for name, estimate in estimates.items()}
    for values in plain.values():
        del values["resampled"]
    return plain


def by_name(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """Name the values that are finite."""
    return {str(name): float(value) for name, value in zip(names, values, strict=True) if np.isfinite(value)}


def resampled_counts(units: int, seed: int) -> np.ndarray:
    """Draw how often each unit is resampled, with replacement, in each round: float64 (ROUNDS, units)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), size=ROUNDS).astype(np.float64)


def percentile_interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """Return the middle 95 % of the resampled values; rounds without a trial are NaN and excluded.

    (None, None) if fewer than half of the rounds have a value, or all values are equal.
    """
    values = values[np.isfinite(values)]
    if 2 * len(values) < ROUNDS or np.ptp(values) == 0:
        return None, None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """`numerator / denominator`, NaN where the denominator is 0."""
    safe = np.where(denominator > 0, denominator, 1)
    return np.where(denominator > 0, numerator / safe, np.nan)
