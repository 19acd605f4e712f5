"""Intervals, values of each patient, and paired differences."""

import numpy as np
import pytest

from src.probe.estimates import Estimate, accuracy_estimate, paired_difference


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


def test_accuracy_estimate_averages_over_classes():
    """Patient a has both classes, the others one; the pooled value weights the two classes equally."""
    patient = np.array(list("aaaabcdef"))
    target = np.array([0, 0, 0, 1, 0, 0, 0, 0, 1])
    predicted = np.array([0, 0, 1, 1, 0, 0, 0, 1, 0])
    found = accuracy_estimate(predicted, target, patient, np.zeros(9, dtype=int), seed=0)
    assert found.value == pytest.approx((5 / 7 + 1 / 2) / 2) and found.chance == 0.5
    assert found.by_patient == {"a": pytest.approx(5 / 6), "b": 1, "c": 1, "d": 1, "e": 0, "f": 0}
    assert (found.trials, found.patients, found.over) == (9, 6, "patients")


def test_accuracy_estimate_of_few_patients_resamples_blocks_of_each():
    """Blocks of the same number in two patients are different blocks."""
    patient, block = np.repeat(["a", "b"], 20), np.tile(np.arange(20) // 10, 2)
    target = np.tile([0, 1], 20)
    predicted = np.where((patient == "a") & (block == 0), 1 - target, target)  # one of four blocks is wrong
    found = accuracy_estimate(predicted, target, patient, block, seed=0)
    assert found.over == "blocks" and found.value == 0.75
    assert found.low == pytest.approx(0.25, abs=0.26) and found.high == 1
