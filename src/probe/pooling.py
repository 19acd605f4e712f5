"""Estimates from trials of several patients: sums, balanced accuracy, and area under the ROC curve.

The intervals resample patients or, with fewer than `FEW` of them, blocks of their slices. A resample without
a trial of some class is excluded.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from src.probe.estimates import FEW, Estimate, by_name, percentile_interval, ratio, resampled_counts


def pooled_estimate(
    rows: np.ndarray,
    patient: np.ndarray,
    block: np.ndarray,
    value_of: Callable[[np.ndarray], np.ndarray],
    chance: float,
    seed: int,
) -> Estimate:
    """Return an estimate from column sums.

    Args:
        rows: (M, K), one row per trial.
        patient: (M,) patient_id.
        block: (M,) number of the block in its patient.
        value_of: maps sums (rounds, K) to values (rounds,).
    """
    units, over = _units(patient, block)
    sums = units.T @ rows
    names, of_patient = _members(patient)
    resampled = value_of(resampled_counts(len(sums), seed) @ sums)
    low, high = percentile_interval(resampled)
    return Estimate(
        value=float(value_of(rows.sum(axis=0, keepdims=True))[0]),
        low=low,
        high=high,
        over=over,
        chance=chance,
        trials=len(rows),
        patients=len(names),
        by_patient=by_name(names, value_of(of_patient.T @ rows)),
        resampled=tuple(resampled.tolist()),
    )


def accuracy_estimate(
    predicted: np.ndarray, target: np.ndarray, patient: np.ndarray, block: np.ndarray, seed: int
) -> Estimate:
    """Return the balanced accuracy: the mean over classes of the share of their rows predicted correctly.

    A patient's own value is the mean over the classes that the patient has.
    """
    classes = np.unique(target)
    of_class = target[:, None] == classes  # (M, classes)
    hits = of_class & (predicted == target)[:, None]
    rows = np.concatenate([hits, of_class], axis=1).astype(np.float64)
    pooled = pooled_estimate(rows, patient, block, _mean_share, 1 / len(classes), seed)
    return replace(pooled, by_patient=_own_classes(rows, patient))


def auc_estimate(
    score: np.ndarray, is_positive: np.ndarray, patient: np.ndarray, block: np.ndarray, seed: int
) -> Estimate:
    """Return the area under the ROC curve, with several classes the mean over each class against the rest.

    It is the share of pairs of a positive and a negative row in the right order, half of a pair of equal
    scores. A patient's own value is that of pairs with the patient's positives and all negatives, the mean
    over the classes that the patient has. A resample weights a pair by both of its patients or blocks.

    Args:
        score: (M, classes), a row's score for each class.
        is_positive: bool (M, classes).
        patient: (M,) patient_id.
        block: (M,) number of the block in its patient.
    """
    units, over = _units(patient, block)
    counts = resampled_counts(units.shape[1], seed)
    shares, of_class = np.zeros(score.shape), []
    for number, (own, positive) in enumerate(zip(np.float64(score.T), is_positive.T, strict=True)):
        above = own[positive, None] - own[~positive]  # (positives, negatives)
        right = np.heaviside(above, 0.5)
        shares[positive, number] = right.mean(axis=1)
        of_units = units[positive].T @ right @ units[~positive]  # (units, units)
        pairs = np.outer(units[positive].sum(axis=0), units[~positive].sum(axis=0))
        of_class.append(ratio(*(((counts @ each) * counts).sum(axis=1) for each in (of_units, pairs))))
    rows = np.concatenate([shares, is_positive], axis=1)
    resampled = np.mean(of_class, axis=0)
    low, high = percentile_interval(resampled)
    return Estimate(
        value=float(_mean_share(rows.sum(axis=0, keepdims=True))[0]),
        low=low,
        high=high,
        over=over,
        chance=0.5,
        trials=len(score),
        patients=len(np.unique(patient)),
        by_patient=_own_classes(rows, patient),
        resampled=tuple(resampled.tolist()),
    )


def _units(patient: np.ndarray, block: np.ndarray) -> tuple[np.ndarray, str]:
    """Membership (M, units) of rows in patients, or in blocks of each of fewer than `FEW`; and their name."""
    names, members = _members(patient)
    if len(names) >= FEW:
        return members, "patients"
    # patient and block, because block numbers start from 0 in each patient
    return _members(np.char.add(patient, np.char.mod(" %d", block)))[1], "blocks"


def _members(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Names of the units, and membership of rows in them: float64 (M, units)."""
    names, number = np.unique(unit, return_inverse=True)
    return names, np.eye(len(names))[number]


def _mean_share(sums: np.ndarray) -> np.ndarray:
    """Mean over classes of the share of hits: (rounds, 2 classes) -> (rounds,), NaN if a class is absent."""
    hits, trials = np.split(sums, 2, axis=1)
    return ratio(hits, trials).mean(axis=1)


def _own_classes(rows: np.ndarray, patient: np.ndarray) -> dict[str, float]:
    """Mean share of each patient over the patient's own classes, from hits and trials (M, 2 classes)."""
    names, members = _members(patient)
    hits, trials = np.split(members.T @ rows, 2, axis=1)  # (patients, classes)
    has_class = trials > 0
    shares = np.where(has_class, hits / np.maximum(trials, 1), 0).sum(axis=1)
    return by_name(names, ratio(shares, has_class.sum(axis=1)))
