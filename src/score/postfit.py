"""Fit the post-processing on out-of-fold predictions, with an unbiased estimate of its gain.

`fit_post` minimises the competition's score itself, regularised towards "change nothing", which matters
with few patients. `cross_fit` never adjusts a patient with parameters that were fitted on the same patient:
every fold is adjusted by a fit to the other folds, which also determine how much may be adjusted.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from src.core.errors import UserError
from src.core.targets import INJURIES
from src.score.bootstrap import bootstrap_difference
from src.score.metric import score
from src.score.post_objective import Parts, PostObjective
from src.score.postprocess import PatientRows, PostProcessing, write_post

MIN_POSITIVES = 10
"""Number of patients of every injury that a fit needs."""
CANDIDATES = (Parts(joining=True), Parts(joining=True, calibration=True))
"""Groups of parameters to try, the smallest first."""
SEEDED_FOLDS = 5
"""Number of folds if none are given."""
INNER_FOLDS = 5
INNER_ROUNDS = 200
ROUNDS = 10
"""Maximum number of searches per fit; before each, the target to raise is fixed."""
MIN_GAIN = 1e-6


@dataclass(frozen=True)
class CrossFit:
    """Effect of post-processing on patients outside its fit."""

    predictions: pd.DataFrame
    """`patient_id` and the 13 columns"""
    by_fold: dict[int, PostProcessing]
    post: PostProcessing
    """parameters fitted on all patients, for the test set"""


def fit_and_report(
    labels: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    folds: pd.DataFrame | None,
    path: Path,
    rounds: int,
    level: float,
) -> dict[str, Any]:
    """Fit the post-processing, write it for `infer.py --post`, and measure its gain across folds.

    Args:
        labels: labels of the patients to fit on, one row per patient.
        tables: tables by path, one row per series or per patient; they may include other patients. A patient
            without a series in any table has the prior, which stays unadjusted as in `infer.py`; the patient
            is excluded from the fit.
        folds: `patient_id, fold`; None makes seeded ones.
        path: path of the file.
        rounds, level: settings of the bootstrap interval.

    Returns:
        `fitted_score, fitted_losses` of cross-fitted predictions, `fitted_difference` (an interval of the
        fitted score minus the raw one, over patients), `fitted_folds` ("as given", or "by seed"), `post`
        (parameters fitted on all patients) and `by_fold` (those of each fold).
    """
    scored = [table[table.patient_id.isin(labels.patient_id)] for table in tables.values()]
    rows = PatientRows.read(scored, labels.patient_id)
    if folds is None:
        number = pd.Series(deal_folds(labels, SEEDED_FOLDS))
    else:
        number = folds.set_index("patient_id").fold.loc[labels.patient_id].reset_index(drop=True)
    raw = rows.apply(PostProcessing.identity(len(tables)))
    with_series = [
        table.patient_id[table.series_id != ""] if "series_id" in table.columns else table.patient_id
        for table in scored
    ]
    has_series = labels.patient_id.isin(pd.concat(with_series)).to_numpy()
    fitted = cross_fit(labels[has_series].reset_index(drop=True), rows.select(has_series), number[has_series])
    predictions = pd.concat([fitted.predictions, raw[~has_series]])
    after = score(labels, predictions)
    difference = bootstrap_difference(labels, predictions, raw, rounds=rounds, level=level)
    origin = "by seed" if folds is None else "as given"
    about = {
        "patients": int(has_series.sum()),
        "folds": origin,
        "raw_score": score(labels, raw).score,
        "cross_fitted_score": after.score,
    }
    write_post(fitted.post, path, tuple(tables), **about)
    post = replace(fitted.post, tables=tuple(tables))
    return {
        "fitted_score": after.score,
        "fitted_losses": after.losses,
        "fitted_difference": asdict(difference),
        "fitted_folds": origin,
        "post": asdict(post) | {"by_fold": {str(name): asdict(of) for name, of in fitted.by_fold.items()}},
    }


def cross_fit(labels: pd.DataFrame, rows: PatientRows, folds: pd.Series) -> CrossFit:
    """Adjust every fold by a fit to the other folds.

    Args:
        labels: `patient_id` and the label columns, one row per patient.
        rows: predictions of the same patients in the same order.
        folds: folds of the patients in the same order.

    Raises:
        UserError: fewer than two folds, or fewer than `MIN_POSITIVES` patients of an injury outside one.
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
        others, held_out_rows = rows.select(~held_out), rows.select(held_out)
        refuse_shared_patients(others.patient_ids, held_out_rows.patient_ids)
        by_fold[int(name)] = select_and_fit(labels[~held_out], others)
        adjusted.append(held_out_rows.apply(by_fold[int(name)]))
    predictions = pd.concat(adjusted).set_index("patient_id").loc[labels.patient_id].reset_index()
    return CrossFit(predictions, by_fold, select_and_fit(labels, rows))


def select_and_fit(labels: pd.DataFrame, rows: PatientRows) -> PostProcessing:
    """Fit those parameters that help patients outside the fit, possibly none.

    Each of `CANDIDATES` is fitted across `INNER_FOLDS` folds. Of those whose gain exceeds its standard error,
    the best is fitted to all patients; if there is none, nothing is changed.

    Args:
        labels, rows: data of the same patients in the same order.
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
        spread = (change.high - change.low) / 2  # 68 % of a normal distribution is within one deviation
        if change.observed < min(best, -spread):
            best, chosen = change.observed, parts
    return fit_post(labels, rows, chosen) if chosen else identity


def fit_post(labels: pd.DataFrame, rows: PatientRows, parts: Parts) -> PostProcessing:
    """Return the parameters that minimise the score of these patients; only `parts` are changed."""
    objective = PostObjective(labels, rows, parts)
    best, least = objective.start, score(labels, rows.apply(objective.read(objective.start))).score
    for _ in range(ROUNDS):
        objective.freeze(best)
        found = minimize(objective, best, jac=True, method="L-BFGS-B", bounds=objective.bounds)
        reached = score(labels, rows.apply(objective.read(found.x))).score
        if reached > least - MIN_GAIN:
            break
        best, least = found.x, reached
    return objective.read(best)


def deal_folds(labels: pd.DataFrame, n_folds: int, seed: int = 0) -> np.ndarray:
    """Assign folds to patients, (patients,); every injury is spread over all folds, the rarest one first."""
    injuries = labels[list(INJURIES)].to_numpy()
    drawn = np.random.default_rng(seed).permutation(len(labels))
    rarest_last = np.argsort(-injuries.sum(axis=0), kind="stable")
    order = drawn[np.lexsort(injuries[drawn][:, rarest_last].T)]
    folds = np.empty(len(labels), dtype=int)
    folds[order] = np.arange(len(labels)) % n_folds
    return folds


def require_positives(labels: pd.DataFrame, where: str) -> None:
    """Raise UserError if an injury has fewer than `MIN_POSITIVES` patients."""
    counts = labels[list(INJURIES)].sum()
    if counts.min() < MIN_POSITIVES:
        raise UserError(
            f"too few positives to fit on: {counts.idxmin()} has {counts.min()} patients {where}, "
            f"post-processing needs at least {MIN_POSITIVES} of every injury"
        )


def refuse_shared_patients(fitted: pd.Series, judged: pd.Series) -> None:
    """Raise UserError if a patient is both in the fit and among those that it adjusts."""
    shared = set(fitted) & set(judged)
    if shared:
        raise UserError(f"patient {min(shared)} would be adjusted by a fit on the same patient")
