"""The finished folds' predictions, joined and scored."""

from pathlib import Path

import pandas as pd

from src.core.files import write_table
from src.core.log import format_table, say, warn
from src.core.targets import COLUMNS
from src.data.labels import read_probabilities
from src.score.metric import score
from src.score.prior import constant, weight_aware_prior
from src.score.submission import combine_series

FOLD_TABLE = "oof_series.csv"
"""In a fold's folder: predictions of its held-out series. Its presence marks the fold as finished."""


def write_out_of_fold(output: Path, labels: pd.DataFrame, folds: pd.Series) -> None:
    """Join the finished folds into `oof_series.csv` and `oof.csv`; print and save their scores.

    A labelled patient without a usable series gets the prior of the other folds in `oof.csv`, as `infer.py`
    gives it the ensemble's: the score is to speak of every patient.

    Args:
        output: folder of the run.
        labels: of every patient.
        folds: the fold of every labelled patient, indexed by patient_id.
    """
    numbers = sorted(int(fold) for fold in folds.unique())
    tables = {
        fold: read_probabilities(output / f"fold{fold}" / FOLD_TABLE)
        for fold in numbers
        if (output / f"fold{fold}" / FOLD_TABLE).exists()
    }
    by_series = pd.concat(tables.values(), ignore_index=True)
    absent = folds[folds.isin(list(tables)) & ~folds.index.isin(by_series.patient_id)]
    by_patient = pd.concat([combine_series(by_series), *_priors(labels, folds, absent)], ignore_index=True)
    write_table(by_series, output / "oof_series.csv")
    write_table(by_patient[["patient_id", "fold", *COLUMNS]], output / "oof.csv")
    rows = [_score_row(f"fold {fold}", group, labels) for fold, group in by_patient.groupby("fold")]
    name = "all" if len(tables) == len(numbers) else f"{len(tables)} folds"
    rows.append(_score_row(name, by_patient, labels))
    write_table(pd.DataFrame(rows), output / "scores.csv")
    say(format_table(rows))
    say(f"out-of-fold predictions: {output / 'oof.csv'}")


def _priors(labels: pd.DataFrame, folds: pd.Series, absent: pd.Series) -> list[pd.DataFrame]:
    if len(absent):
        warn(
            f"{len(absent)} labelled patients have no prepared series and get the prior, as {absent.index[0]}"
        )
    tables = []
    for fold, patients in absent.groupby(absent):
        prior = weight_aware_prior(labels[labels.patient_id.map(folds) != fold])
        tables.append(constant(prior, patients.index.to_series()).assign(fold=fold))
    return tables


def _score_row(name: str, predicted: pd.DataFrame, labels: pd.DataFrame) -> dict[str, object]:
    truth = labels[labels.patient_id.isin(predicted.patient_id)].reset_index(drop=True)
    scored = score(truth, predicted[["patient_id", *COLUMNS]])
    return {"fold": name, "patients": len(truth), "score": scored.score, **scored.losses}
