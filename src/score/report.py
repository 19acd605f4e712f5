"""The score report: folds, overall, priors, intervals, AUC and classes, as one dictionary and as text."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from src.core.errors import UserError
from src.core.log import format_table
from src.score.bootstrap import bootstrap_difference, bootstrap_score
from src.score.classes import MEASURES, class_means, class_metrics
from src.score.metric import score
from src.score.ranking import auc_per_grade

PRIORS = {
    "prior": ("difference", "weight-aware prior"),
    "raised_prior": ("raised_difference", "raised prior"),
}
"""Each prior's key in a report: the key of the difference to it, and its name in the text."""


def assign_folds(
    labels: pd.DataFrame, predictions: pd.DataFrame, folds: pd.DataFrame | None
) -> pd.DataFrame | None:
    """Find the folds that the predictions cover, and every patient that belongs to them.

    With a table of folds, a run of some folds only is scored on the patients of these folds, all of whom must
    have a prediction. Without one, the predictions' own `fold` column serves, and every labelled patient is
    expected.

    Args:
        labels: `patient_id` and the label columns.
        predictions: a row a patient, with or without `fold`.
        folds: `patient_id, fold` of every labelled patient, or None.

    Returns:
        `patient_id, fold` of the patients to be scored, or None where no folds are known.

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
        labels, predictions: of the same patients; a row a patient.
        folds: `patient_id, fold` of these patients, or None.
        priors: predictions of the same patients, by their key in `PRIORS`.
        rounds, level: of the bootstrap intervals.

    Returns:
        Plain values, ready for JSON: `patients, score, losses, interval, folds, auc, classes`, and for each
        prior the two keys of `PRIORS`. A difference is the predictions' score minus the prior's. `classes`
        holds `all` and `injuries` (means over 13 and 8 classes: `map, auc, precision, recall, f1`),
        `per_class`, and `left_out`, the classes that no patient or every patient has and that the means
        therefore miss.

    Raises:
        UserError: as `metric.score`.
    """
    report: dict[str, Any] = {
        "patients": len(labels),
        **asdict(score(labels, predictions)),
        "interval": asdict(bootstrap_score(labels, predictions, rounds=rounds, level=level)),
        "folds": [] if folds is None else _score_folds(labels, predictions, folds),
    }
    for key, prior in priors.items():
        difference = bootstrap_difference(labels, predictions, prior, rounds=rounds, level=level)
        report[key] = asdict(score(labels, prior))
        report[PRIORS[key][0]] = asdict(difference)
    report["auc"] = {
        row.injury: {
            "auc": _or_none(row.auc),
            "positives": row.positives,
            "negatives": row.negatives,
        }
        for row in auc_per_grade(labels, predictions).itertuples()
    }
    report["classes"] = _measure_classes(labels, predictions)
    return report


def format_report(report: dict[str, Any]) -> str:
    """The report as four blocks of text: losses, intervals, AUC, classes."""
    rows = [_row(f"fold {fold['fold']}", fold["patients"], fold) for fold in report["folds"]]
    rows.append(_row("overall", report["patients"], report))
    shown = {key: names for key, names in PRIORS.items() if key in report}
    rows += [_row(name, report["patients"], report[key]) for key, (_, name) in shown.items()]
    lines = [format_table(rows), "", f"score {_format_interval(report['interval'], '.4f')}"]
    for key, (difference, name) in shown.items():
        change = report["score"] / report[key]["score"] - 1
        lines.append(
            f"difference to the {name} {_format_interval(report[difference], '+.4f')}, {change:+.1%}"
        )
    auc = [{"injury": injury, **values} for injury, values in report["auc"].items()]
    lines += ["", "AUC of each grade against healthy", format_table(pd.DataFrame(auc))]
    return "\n".join([*lines, "", *_format_classes(report["classes"])])


def _score_folds(
    labels: pd.DataFrame, predictions: pd.DataFrame, folds: pd.DataFrame
) -> list[dict[str, Any]]:
    rows = []
    for fold, members in folds.groupby("fold"):
        chosen = [frame[frame.patient_id.isin(members.patient_id)] for frame in (labels, predictions)]
        rows.append({"fold": int(fold), "patients": len(members), **asdict(score(*chosen))})
    return rows


def _measure_classes(labels: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, Any]:
    table = class_metrics(labels, predictions)
    rows = [{key: _or_none(value) for key, value in row.items()} for row in table.to_dict("records")]
    means = {"all": class_means(table), "injuries": class_means(table, injuries_only=True)}
    return {
        **{name: {key: _or_none(value) for key, value in mean.items()} for name, mean in means.items()},
        "left_out": [row["class"] for row in rows if row["recall"] is None],
        "per_class": {row.pop("class"): row for row in rows},
    }


def _format_classes(classes: dict[str, Any]) -> list[str]:
    rows = [{"class": name, **values} for name, values in classes["per_class"].items()]
    for name, key in (("mean of all", "all"), ("mean of injuries", "injuries")):
        values = classes[key]
        counts = {"positives": "-", "predicted": "-"}
        rows.append({"class": name, **counts, **dict(zip(MEASURES, values.values(), strict=True))})
    lines = ["Each class against the rest of its target (the mean average precision is the mAP)"]
    lines.append(format_table(rows))
    if classes["left_out"]:
        lines.append(f"left out, as no patient or every patient has it: {', '.join(classes['left_out'])}")
    return lines


def _or_none(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _row(name: str, patients: int, scored: dict[str, Any]) -> dict[str, Any]:
    return {"": name, "patients": patients, **scored["losses"], "score": scored["score"]}


def _format_interval(interval: dict[str, float], form: str) -> str:
    low, high = format(interval["low"], form), format(interval["high"], form)
    return f"{format(interval['observed'], form)} ({interval['level']:.0%} interval {low} to {high})"
