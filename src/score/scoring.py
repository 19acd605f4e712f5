"""Scores of out-of-fold tables and of a submission, as a JSON-compatible dictionary."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd

from src.core.errors import UserError
from src.core.log import say
from src.score.bootstrap import bootstrap_difference, bootstrap_score
from src.score.classes import auc_per_grade, class_means, class_metrics
from src.score.metric import align, score
from src.score.missing_targets import explain_missing, fill_targets, missing_targets
from src.score.prior import constant, cross_fitted_prior, raised_prior, weight_aware_prior
from src.score.submission import combine_tables, folds_differ, one_row_per_patient

PRIORS = MappingProxyType(
    {"prior": (weight_aware_prior, "difference"), "raised_prior": (raised_prior, "raised_difference")}
)
"""Key of each prior in a report: the function that fits it, and the key of the difference to it."""


class Scored(NamedTuple):
    """A report with the tables that it describes."""

    report: dict[str, Any]
    labels: pd.DataFrame
    """labels of the scored patients"""
    predictions: pd.DataFrame
    """one row per patient"""


def score_oof(
    labels: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    folds: pd.DataFrame | None,
    fit: Path | None,
    rounds: int,
    level: float,
) -> Scored:
    """Score out-of-fold tables, joined and one by one, and fit the post-processing.

    Args:
        labels: labels of all patients.
        tables: tables by path, one row per series or per patient.
        folds: `patient_id, fold` of every labelled patient; None takes the folds of the tables.
        fit: JSON file for the post-processing; None fits none.
        rounds, level: settings of the bootstrap intervals.

    Returns:
        The report of `build_report`, with `missing_targets` (targets that no table predicts), `series` (see
        `by_series_count`), for several tables `tables` (see `side_by_side`), and with `fit` the keys of
        `postfit.fit_and_report`.
    """
    by_patient = one_row_per_patient(tables)
    if folds_differ(by_patient.values()):
        say("the tables put patients in different folds: their folds are left aside")
        by_patient = {name: table.drop(columns="fold", errors="ignore") for name, table in by_patient.items()}
    predictions = combine_tables(list(by_patient.values()))
    folds = folds_to_score(labels, predictions, folds)
    scored, priors = labels, {}
    if folds is None:
        seeded = "; --fit makes folds of its own from a seed" if fit else ""
        say(f"no folds are known (give --folds): neither a score per fold nor priors{seeded}\n")
    else:
        scored = labels[labels.patient_id.isin(folds.patient_id)].reset_index(drop=True)
        if len(scored) < len(labels):
            names = ", ".join(str(fold) for fold in sorted(folds.fold.unique()))
            counts = f"{len(scored)} of {len(labels)} patients"
            say(f"only the folds in the tables are scored: {names} ({counts})\n")
        if len(labels) > folds.groupby("fold").size().max():  # a prior needs patients of other folds
            priors = {key: cross_fitted_prior(labels, folds, prior) for key, (prior, _) in PRIORS.items()}
    for line in explain_missing(by_patient):
        say(f"{line}\n")
    missing = missing_targets(predictions)
    predictions = fill_targets(predictions, missing, labels, folds)
    report = build_report(scored, predictions, folds, priors, rounds, level)
    report["missing_targets"] = list(missing)
    counts = pd.concat(table.groupby("patient_id").size() for table in tables.values())
    report["series"] = by_series_count(scored, predictions, counts.groupby(level=0).max())
    if len(tables) > 1:
        alone = {
            name: fill_targets(table, missing_targets(table), labels, folds)
            for name, table in by_patient.items()
        }
        report["tables"] = side_by_side(scored, alone, rounds, level)
    if fit:
        from src.score.postfit import fit_and_report  # scipy takes longer than scoring

        filled = {name: fill_targets(table, missing, labels, folds) for name, table in tables.items()}
        report |= fit_and_report(scored, filled, folds, fit, rounds, level)
    return Scored(report, scored, predictions)


def score_submission(
    labels: pd.DataFrame,
    submission: pd.DataFrame,
    prior_labels: pd.DataFrame | None,
    rounds: int,
    level: float,
) -> Scored:
    """Score a submission (one row per patient), and priors of `prior_labels` if given."""
    predictions = align(submission, labels.patient_id, "rows of the submission")
    priors = {}
    if prior_labels is not None:
        priors = {key: constant(fit(prior_labels), labels.patient_id) for key, (fit, _) in PRIORS.items()}
    report = build_report(labels, predictions, None, priors, rounds, level)
    return Scored(report, labels, predictions)


def folds_to_score(
    labels: pd.DataFrame, predictions: pd.DataFrame, folds: pd.DataFrame | None
) -> pd.DataFrame | None:
    """Find the folds that the predictions cover, and every patient that belongs to them.

    With a table of folds, a run of some folds is scored on the patients of these folds, all of whom must have
    a prediction. Without one, the `fold` column of the predictions is used, and every labelled patient must
    have a prediction.

    Args:
        labels: `patient_id` and the label columns.
        predictions: one row per patient, with or without `fold`.
        folds: `patient_id, fold` of every labelled patient, or None.

    Returns:
        `patient_id, fold` of the patients to score, or None if no folds are known.

    Raises:
        UserError: a predicted patient without labels, a fold that contradicts `folds`, or (without `folds`) a
            labelled patient without a prediction.
    """
    unknown = predictions.patient_id[~predictions.patient_id.isin(labels.patient_id)]
    if len(unknown):
        raise UserError(
            f"the labels lack {len(unknown)} of {len(predictions)} predicted patients, the first is "
            f"{unknown.iloc[0]}"
        )
    if folds is None:
        absent = labels.patient_id[~labels.patient_id.isin(predictions.patient_id)]
        if len(absent):
            raise UserError(
                f"the predictions lack {len(absent)} of {len(labels)} labelled patients, the first is "
                f"{absent.iloc[0]}; if only some folds were trained, name the folds with --folds"
            )
        return predictions[["patient_id", "fold"]] if "fold" in predictions.columns else None
    if "fold" in predictions.columns:
        both = predictions.merge(folds, on="patient_id", suffixes=("", "_table"))
        differs = both[both.fold != both.fold_table]
        if len(differs):
            row = differs.iloc[0]
            raise UserError(
                f"patient {row.patient_id} was predicted in fold {row.fold} but {row.fold_table} is its own: "
                "use the table of folds that the models were trained with"
            )
    covered = folds.fold[folds.patient_id.isin(predictions.patient_id)].unique()
    return folds[folds.fold.isin(covered)]


def build_report(
    labels: pd.DataFrame,
    predictions: pd.DataFrame,
    folds: pd.DataFrame | None,
    priors: Mapping[str, pd.DataFrame],
    rounds: int,
    level: float,
) -> dict[str, Any]:
    """Score `predictions` overall, by fold, and against `priors`.

    Args:
        labels, predictions: tables of the same patients; one row per patient.
        folds: `patient_id, fold` of these patients, or None.
        priors: predictions of the same patients, by their key in `PRIORS`.
        rounds, level: settings of the bootstrap intervals.

    Returns:
        `patients, score, losses, interval, folds, auc, classes`, and for each prior its score and the
        difference, under the two keys of `PRIORS`. A difference is the predictions' score minus the prior's.
        `classes` contains `all` and `injuries` (means over 13 and 8 classes: `map, auc, precision, recall,
        f1`), `per_class`, and `left_out`, the classes that no patient or every patient has and that the means
        therefore exclude.
    """
    report: dict[str, Any] = {
        "patients": len(labels),
        **asdict(score(labels, predictions)),
        "interval": asdict(bootstrap_score(labels, predictions, rounds=rounds, level=level)),
        "folds": [],
    }
    for fold, members in () if folds is None else folds.groupby("fold"):
        scored = _score_patients(labels, predictions, members.patient_id)
        report["folds"].append({"fold": int(fold), **scored})
    for key, prior in priors.items():
        difference = bootstrap_difference(labels, predictions, prior, rounds=rounds, level=level)
        report[key] = asdict(score(labels, prior))
        report[PRIORS[key][1]] = asdict(difference)
    report["auc"] = {
        row.injury: {"auc": _or_none(row.auc), "positives": row.positives, "negatives": row.negatives}
        for row in auc_per_grade(labels, predictions).itertuples()
    }
    report["classes"] = _measure_classes(labels, predictions)
    return report


def side_by_side(
    labels: pd.DataFrame, runs: Mapping[str, pd.DataFrame], rounds: int, level: float
) -> list[dict[str, Any]]:
    """Score every run alone, on the same patients.

    Args:
        labels: `patient_id` and the label columns.
        runs: predictions by name, one row per patient; they may include other patients.
        rounds, level: settings of the bootstrap intervals.

    Returns:
        For each run `name, score, losses`, and from the second on `difference`: an interval of its score
        minus that of the first run, both on the same resampled patients.
    """
    rows, first = [], None
    for name, predictions in runs.items():
        aligned = align(predictions[predictions.patient_id.isin(labels.patient_id)], labels.patient_id)
        row = {"name": name, **asdict(score(labels, aligned))}
        if first is None:
            first = aligned
        else:
            row["difference"] = asdict(
                bootstrap_difference(labels, aligned, first, rounds=rounds, level=level)
            )
        rows.append(row)
    return rows


def by_series_count(
    labels: pd.DataFrame, predictions: pd.DataFrame, series: pd.Series
) -> dict[str, dict[str, Any]]:
    """Score patients with one series and patients with several series separately.

    Args:
        labels: `patient_id` and the label columns.
        predictions: one row per patient.
        series: number of series, indexed by patient id.

    Returns:
        `patients, score, losses` under `one` and `several`; empty unless both exist.
    """
    counts = labels.patient_id.map(series).fillna(1)
    groups = {"one": labels.patient_id[counts <= 1], "several": labels.patient_id[counts > 1]}
    if any(group.empty for group in groups.values()):
        return {}
    return {name: _score_patients(labels, predictions, group) for name, group in groups.items()}


def _score_patients(
    labels: pd.DataFrame, predictions: pd.DataFrame, patient_ids: pd.Series
) -> dict[str, Any]:
    """Return `patients, score, losses` for some of the patients."""
    chosen = [frame[frame.patient_id.isin(patient_ids)] for frame in (labels, predictions)]
    return {"patients": len(patient_ids), **asdict(score(*chosen))}


def _measure_classes(labels: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, Any]:
    table = class_metrics(labels, predictions)
    rows = [{key: _or_none(value) for key, value in row.items()} for row in table.to_dict("records")]
    means = {"all": class_means(table), "injuries": class_means(table, injuries_only=True)}
    return {
        **{name: {key: _or_none(value) for key, value in mean.items()} for name, mean in means.items()},
        "left_out": [row["class"] for row in rows if row["recall"] is None],
        "per_class": {row.pop("class"): row for row in rows},
    }


def _or_none(value: Any) -> Any:
    """Replace NaN, which JSON lacks, by None."""
    return None if isinstance(value, float) and math.isnan(value) else value
