"""What a fit of the post-processing gains, as plain values and as text."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.core.log import format_table
from src.score.bootstrap import bootstrap_difference
from src.score.metric import score
from src.score.postfit import cross_fit, deal_folds
from src.score.postprocess import PatientRows, PostProcessing, write_post

SEEDED_FOLDS = 5


def fit_and_report(
    labels: pd.DataFrame,
    tables: Sequence[pd.DataFrame],
    names: Sequence[str],
    folds: pd.DataFrame | None,
    path: Path,
    rounds: int,
    level: float,
) -> dict[str, Any]:
    """Fit the post-processing, write it for `infer.py --post`, and tell what it gains across folds.

    Args:
        labels: of the patients to fit on, a row a patient.
        tables: a row a series or a patient, of these patients and perhaps others. A patient of whom they
            name no series was given the prior: as in `infer.py` he keeps it, and takes no part in the fit.
        names: paths of the tables, for the file.
        folds: `patient_id, fold`; None makes seeded ones.
        path: of the file.
        rounds, level: of the bootstrap interval.

    Returns:
        `fitted_score, fitted_losses` of cross-fitted predictions, `fitted_difference` (an interval of the
        fitted score minus the raw one, over patients) and `post`: the numbers fitted on all patients, and
        `by_fold` those of each fold.

    Raises:
        UserError: as `cross_fit`.
    """
    own = [table[table.patient_id.isin(labels.patient_id)] for table in tables]
    rows = PatientRows.read(own, labels.patient_id)
    if folds is None:
        number = pd.Series(deal_folds(labels, SEEDED_FOLDS))
    else:
        number = folds.set_index("patient_id").fold.loc[labels.patient_id].reset_index(drop=True)
    raw = rows.apply(PostProcessing.identity(len(tables)))
    has_series = _have_series(own, labels.patient_id)
    fitted = cross_fit(labels[has_series].reset_index(drop=True), rows.select(has_series), number[has_series])
    predictions = pd.concat([fitted.predictions, raw[~has_series]])
    after = score(labels, predictions)
    difference = bootstrap_difference(labels, predictions, raw, rounds=rounds, level=level)
    about = {
        "patients": int(has_series.sum()),
        "folds": "by seed" if folds is None else "as given",
        "raw_score": score(labels, raw).score,
        "cross_fitted_score": after.score,
    }
    write_post(fitted.post, path, names, **about)
    return {
        "fitted_score": after.score,
        "fitted_losses": after.losses,
        "fitted_difference": asdict(difference),
        "post": asdict(replace(fitted.post, tables=tuple(names)))
        | {"by_fold": {str(name): asdict(post) for name, post in fitted.by_fold.items()}},
    }


def format_fit(report: dict[str, Any], names: Sequence[str]) -> str:
    """Losses before and after, the interval of the gain, and every number with its range over folds."""
    losses = [
        {"": "raw", **report["losses"], "score": report["score"]},
        {"": "cross-fitted", **report["fitted_losses"], "score": report["fitted_score"]},
    ]
    change = report["fitted_difference"]
    post, by_fold = report["post"], report["post"]["by_fold"].values()
    numbers = []
    for key in ("weights", "series_max", "any_injury", "temperature", "multipliers"):
        for part, value in _parts(post[key], names):
            over_folds = [dict(_parts(fold[key], names))[part] for fold in by_fold]
            row = {"post-processing": f"{key} {part}".strip(), "all folds": value}
            numbers.append(row | {"least of a fold": min(over_folds), "most": max(over_folds)})
    return "\n".join(
        [
            "Post-processing, every fold by a fit to the others",
            format_table(losses),
            "",
            f"change {change['observed']:+.4f} ({change['level']:.0%} interval {change['low']:+.4f} to "
            f"{change['high']:+.4f})",
            "",
            format_table(pd.DataFrame(numbers)),
        ]
    )


def _have_series(tables: Sequence[pd.DataFrame], patient_ids: pd.Series) -> np.ndarray:
    """Whose series a table names, (patients,) bool; a table without `series_id` names everybody's."""
    named = [
        table.patient_id[table.series_id != ""] if "series_id" in table.columns else table.patient_id
        for table in tables
    ]
    return patient_ids.isin(pd.concat(named)).to_numpy()


def _parts(value: Any, names: Sequence[str]) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(zip(names, value, strict=True)) if isinstance(value, list | tuple) else [("", value)]
