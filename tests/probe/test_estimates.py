"""Differences of two networks, paired by patient."""

import numpy as np
import pytest

from src.probe.estimates import Estimate, paired_difference


def estimate(values: list[float]) -> Estimate:
    named = {f"patient {number}": value for number, value in enumerate(values)}
    return Estimate(0.0, None, None, "patients", 0.5, len(values), len(values), named)


def test_paired_difference_resamples_patients_in_pairs():
    """Patients differ much from each other and little between the networks."""
    level = np.linspace(0, 1, 20)
    gap = 0.1 + 0.02 * np.random.default_rng(0).normal(size=20)
    found = paired_difference(estimate(list(level + gap)), estimate(list(level)), seed=0)
    assert found.value == pytest.approx(gap.mean()) and found.patients == 20
    width = 2 * 1.96 * gap.std() / np.sqrt(20)
    assert found.low < found.value < found.high and found.high - found.low == pytest.approx(width, rel=0.1)


def test_paired_difference_needs_five_patients():
    assert paired_difference(estimate([0.5] * 4), estimate([0.4] * 4), seed=0) is None
    assert paired_difference(estimate([0.5] * 5), estimate([0.4] * 5), seed=0).value == pytest.approx(0.1)
    assert paired_difference(estimate([]), estimate([]), seed=0) is None


def test_paired_difference_refuses_other_patients():
    with pytest.raises(ValueError, match="different patients"):
        paired_difference(estimate([0.5] * 6), estimate([0.4] * 5), seed=0)
