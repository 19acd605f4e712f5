"""Fitting the post-processing on out-of-fold predictions, with an honest estimate of what it gains.

`fit_post` minimises the competition's score itself, with a pull to "change nothing" that matters where
patients are few. `cross_fit` never adjusts a patient by numbers that he took part in finding: his fold is
adjusted by a fit to the other folds, and how much may be adjusted is decided inside those.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from src.core.errors import UserError
from src.core.targets import INJURIES
from src.score.bootstrap import bootstrap_difference
from src.score.metric import score
from src.score.post_objective import Parts, PostObjective
from src.score.postprocess import PatientRows, PostProcessing

LEAST_POSITIVES = 10
"""Patients of every injury that a fit needs."""
CANDIDATES = (Parts(joining=True), Parts(joining=True, calibration=True))
"""What a fit may change, the least first."""
INNER_FOLDS = 5
INNER_ROUNDS = 200
ROUNDS = 10
"""Of a fit at most: in each, the target that is raised is settled first."""
LEAST_GAIN = 1e-6


@dataclass(frozen=True)
class CrossFit:
    """What post-processing does to patients who took no part in its fit."""

    predictions: pd.DataFrame
    """`patient_id` and the 13 columns"""
    by_fold: dict[int, PostProcessing]
    post: PostProcessing
    """fitted on all patients, for the test set"""


def cross_fit(labels: pd.DataFrame, rows: PatientRows, folds: pd.Series) -> CrossFit:
    """Adjust every fold by a fit to the other folds.

    Args:
        labels: `patient_id` and the label columns, a row a patient.
        rows: the tables' predictions of the same patients in the same order.
        folds: their folds, in the same order.

    Raises:
        UserError: fewer than two folds, or fewer than `LEAST_POSITIVES` patients of an injury outside one.
    """
    numbers = folds.to_numpy()
    names = np.unique(numbers)
    if len(names) < 2:
        raise UserError("post-processing is fitted across folds: there must be at least two")
    for name in names:
        require_positives(labels[numbers != name], f"outside fold {name}")
    by_fold, adjusted = {}, []
    for name in names:
        held_out = numbers == name
        others, own = rows.select(~held_out), rows.select(held_out)
        refuse_shared_patients(others.patient_ids, own.patient_ids)
        by_fold[int(name)] = choose_post(labels[~held_out], others)
        adjusted.append(own.apply(by_fold[int(name)]))
    predictions = pd.concat(adjusted).set_index("patient_id").loc[labels.patient_id].reset_index()
    return CrossFit(predictions, by_fold, choose_post(labels, rows))


def choose_post(labels: pd.DataFrame, rows: PatientRows) -> PostProcessing:
    """Fit as much as helps patients outside the fit, perhaps nothing.

    Each of `CANDIDATES` is fitted across `INNER_FOLDS` folds. Of those whose gain there is more than the
    gain's own standard error, the best is fitted to all patients; without one nothing is changed.

    Args:
        labels, rows: of the same patients in the same order.
    """
    inner = deal_folds(labels, INNER_FOLDS)
    identity = PostProcessing.identity(len(rows.mean))
    raw = rows.apply(identity)
    best, chosen = 0.0, None
    for parts in CANDIDATES:
        adjusted = []
        for fold in np.unique(inner):
            post = fit_post(labels[inner != fold], rows.select(inner != fold), parts)
            adjusted.append(rows.select(inner == fold).apply(post))
        change = bootstrap_difference(labels, pd.concat(adjusted), raw, rounds=INNER_ROUNDS, level=0.68)
        spread = (change.high - change.low) / 2  # of a normal distribution, 68 % lie within one deviation
        if change.observed < min(best, -spread):
            best, chosen = change.observed, parts
    return fit_post(labels, rows, chosen) if chosen else identity


def fit_post(labels: pd.DataFrame, rows: PatientRows, parts: Parts) -> PostProcessing:
    """The numbers that minimise the score of these patients; only what `parts` names is changed."""
    objective = PostObjective(labels, rows, parts)
    best, least = objective.start, score(labels, rows.apply(objective.read(objective.start))).score
    for _ in range(ROUNDS):
        objective.freeze(best)
        found = minimize(objective, best, jac=True, method="L-BFGS-B", bounds=objective.bounds)
        reached = score(labels, rows.apply(objective.read(found.x))).score
        if reached > least - LEAST_GAIN:
            break
        best, least = found.x, reached
    return objective.read(best)


def deal_folds(labels: pd.DataFrame, n_folds: int, seed: int = 0) -> np.ndarray:
    """A fold for each patient, patients of the same injuries spread over all; the rarest injury first."""
    injuries = labels[list(INJURIES)].to_numpy()
    drawn = np.random.default_rng(seed).permutation(len(labels))
    rarest_last = np.argsort(-injuries.sum(axis=0), kind="stable")
    order = drawn[np.lexsort(injuries[drawn][:, rarest_last].T)]
    folds = np.empty(len(labels), dtype=int)
    folds[order] = np.arange(len(labels)) % n_folds
    return folds


def require_positives(labels: pd.DataFrame, where: str) -> None:
    """Raises UserError where an injury has fewer than `LEAST_POSITIVES` patients."""
    counts = labels[list(INJURIES)].sum()
    if counts.min() < LEAST_POSITIVES:
        raise UserError(
            f"too few positives to fit on: {counts.idxmin()} has {counts.min()} patients {where}, "
            f"post-processing needs at least {LEAST_POSITIVES} of every injury"
        )


def refuse_shared_patients(fitted: pd.Series, judged: pd.Series) -> None:
    """Raises UserError where a patient is among those fitted to and among those judged."""
    shared = set(fitted) & set(judged)
    if shared:
        raise UserError(f"patient {min(shared)} would be judged by a fit that he took part in")
