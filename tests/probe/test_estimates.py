"""Intervals of the difference of two networks, paired by patient."""

import numpy as np
import pytest

from src.probe.estimates import paired_rounds, percentile_interval


def named(values) -> dict[str, float]:
    return {f"patient {number}": float(value) for number, value in enumerate(values)}


def test_paired_rounds_resample_patients_in_pairs():
    """Patients differ much from each other and little between the networks."""
    level = np.linspace(0, 1, 20)
    gap = 0.1 + 0.02 * np.random.default_rng(0).normal(size=20)
    low, high = percentile_interval(paired_rounds(named(level + gap), named(level), seed=0))
    width = 2 * 1.96 * gap.std() / np.sqrt(20)
    assert low < gap.mean() < high and high - low == pytest.approx(width, rel=0.1)


def test_paired_rounds_need_five_patients_of_both():
    five = named([0.5, 0.6, 0.5, 0.6, 0.5])
    assert paired_rounds(five, named([0.4] * 5), seed=0) is not None
    assert paired_rounds(five, named([0.4] * 4), seed=0) is None
    assert paired_rounds({}, {}, seed=0) is None
