"""The score taken apart: several runs side by side, and patients by their number of series."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from src.core.log import format_table
from src.score.bootstrap import bootstrap_difference
from src.score.metric import align, score


def side_by_side(
    labels: pd.DataFrame, runs: Mapping[str, pd.DataFrame], rounds: int, level: float
) -> list[dict[str, Any]]:
    """Score every run alone, on the same patients.

    Args:
        labels: `patient_id` and the label columns.
        runs: predictions by name, a row a patient, of these patients and perhaps others.
        rounds, level: of the bootstrap intervals.

    Returns:
        For each run `name, score, losses`, and from the second on `difference`: an interval of its score
        minus the first one's, both on the same resampled patients.
    """
    rows, first = [], None
    for name, predictions in runs.items():
        own = align(predictions[predictions.patient_id.isin(labels.patient_id)], labels.patient_id)
        row = {"name": name, **asdict(score(labels, own))}
        if first is None:
            first = own
        else:
            row["difference"] = asdict(bootstrap_difference(labels, own, first, rounds=rounds, level=level))
        rows.append(row)
    return rows


def by_series_count(
    labels: pd.DataFrame, predictions: pd.DataFrame, series: pd.Series
) -> dict[str, dict[str, Any]]:
    """Score patients with one series and patients with several apart.

    Args:
        labels: `patient_id` and the label columns.
        predictions: a row a patient.
        series: number of series, indexed by patient id.

    Returns:
        `patients, score, losses` under `one` and `several`; empty where there are not both.
    """
    counts = labels.patient_id.map(series).fillna(1)
    groups = {"one": labels[counts <= 1], "several": labels[counts > 1]}
    if any(group.empty for group in groups.values()):
        return {}
    return {
        name: {
            "patients": len(group),
            **asdict(score(group, predictions[predictions.patient_id.isin(group.patient_id)])),
        }
        for name, group in groups.items()
    }


def format_side_by_side(rows: list[dict[str, Any]]) -> str:
    """A line a run, with the interval of its difference to the first."""
    shown = []
    for row in rows:
        change = row.get("difference")
        difference = (
            "-"
            if change is None
            else f"{change['observed']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})"
        )
        shown.append(
            {"run": row["name"], **row["losses"], "score": row["score"], "minus the first": difference}
        )
    return f"Each run alone\n{format_table(shown)}"


def format_series_count(groups: dict[str, dict[str, Any]]) -> str:
    """A line each for patients with one and with several series."""
    shown = [
        {"series": name, "patients": group["patients"], **group["losses"], "score": group["score"]}
        for name, group in groups.items()
    ]
    return f"Patients by their series\n{format_table(shown)}"
