"""Estimates pooled over patients: values, intervals, and the value of each patient."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from src.probe.estimates import percentile_interval, resampled_counts
from src.probe.pooling import accuracy_estimate, auc_estimate


def test_accuracy_estimate_averages_over_classes():
    """Patient a has both classes, the others one; the pooled value weights the two classes equally."""
    patient = np.array(list("aaaabcdef"))
    target = np.array([0, 0, 0, 1, 0, 0, 0, 0, 1])
    predicted = np.array([0, 0, 1, 1, 0, 0, 0, 1, 0])
    found = accuracy_estimate(predicted, target, patient, np.zeros(9, dtype=int), seed=0)
    assert found.value == pytest.approx(balanced_accuracy_score(target, predicted)) and found.chance == 0.5
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


def test_accuracy_estimate_excludes_resamples_without_a_class():
    """One of ten patients alone has the second class, which is never found: each complete resample is 1/2."""
    patient = np.array(list("abcdefghij"))
    target = (patient == "a").astype(int)
    found = accuracy_estimate(np.zeros(10, dtype=int), target, patient, np.zeros(10, dtype=int), seed=0)
    assert (found.value, found.low) == (0.5, None)


@pytest.mark.parametrize("patients", [1, 5], ids=["blocks", "patients"])
def test_auc_estimate_is_the_area_of_scikit_learn(patients):
    rng = np.random.default_rng(0)
    target, unit = rng.integers(3, size=200), np.repeat(np.arange(5), 40)
    is_positive = target[:, None] == np.arange(3)
    score = np.round(is_positive + rng.normal(0, 1, (200, 3)), 1)  # with ties
    names = np.char.mod("%d", unit) if patients == 5 else np.full(200, "a")
    found = auc_estimate(score, is_positive, names, unit, seed=3)
    assert found.value == pytest.approx(roc_auc_score(is_positive, score, average="macro"))
    resampled = [
        roc_auc_score(is_positive, score, average="macro", sample_weight=counts[unit])
        for counts in resampled_counts(5, 3)
    ]
    assert (found.low, found.high) == pytest.approx(percentile_interval(np.array(resampled)))
    assert (found.patients, found.chance, len(found.by_patient)) == (patients, 0.5, patients)


def test_auc_estimate_compares_a_patients_positives_with_all_negatives():
    """Patient a has no negatives, patient b no positives."""
    score, is_positive = np.array([3.0, 1.0, 2.0, 0.0])[:, None], np.array([1, 1, 0, 0], dtype=bool)[:, None]
    found = auc_estimate(score, is_positive, np.array(list("aabb")), np.zeros(4, dtype=int), seed=0)
    assert found.value == 0.75 and found.by_patient == {"a": 0.75}
