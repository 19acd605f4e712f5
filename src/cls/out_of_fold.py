"""Out-of-fold predictions: checks that patients are held out, and tables and scores over finished folds."""

from pathlib import Path

import numpy as np
import pandas as pd

from src.cls.fold_models import FOLD_TABLE
from src.core.errors import UserError
from src.core.files import write_table
from src.core.log import format_table, say, warn
from src.core.targets import COLUMNS, TARGETS
from src.data.labels import CHOSEN_BY, CHOSEN_BY_SCORE, read_probabilities, warn_of_chosen_weights
from src.score.metric import score
from src.score.missing_targets import fill_targets, missing_targets
from src.score.submission import combine_series


def refuse_shared_patients(training: pd.DataFrame, held_out: pd.DataFrame) -> None:
    """Check that no patient has series on both sides of a split.

    Args:
        training, held_out: rows with `patient_id, series_id`.

    Raises:
        UserError: a patient is on both sides.
    """
    shared = set(training["patient_id"]) & set(held_out["patient_id"])
    if shared:
        patient = min(shared)
        series = [
            ", ".join(table.loc[table["patient_id"] == patient, "series_id"])
            for table in (training, held_out)
        ]
        raise UserError(
            f"patient {patient} is trained on (series {series[0]}) and held out (series {series[1]}): "
            "folds go by patient"
        )


def write_out_of_fold(output: Path, labels: pd.DataFrame, folds: pd.Series, keep: str = "last") -> None:
    """Join the finished folds into `oof_series.csv` and `oof.csv`; print and save their scores.

    `score.py` joins `oof_series.csv` with other runs' tables as `infer.py` joins runs: targets that the run
    does not predict are empty, and a labelled patient without a usable series has a row with an empty
    `series_id` and the prior of the other folds. `oof.csv` is complete: one row per patient, with the prior
    for missing targets.

    Args:
        output: folder of the run.
        labels: labels of every patient.
        folds: fold of every labelled patient, indexed by patient_id.
        keep: `best` if the weights of each fold were chosen by its score: a column of this name says so.
    """
    numbers = sorted(int(fold) for fold in folds.unique())
    tables = {
        fold: read_probabilities(output / f"fold{fold}" / FOLD_TABLE)
        for fold in numbers
        if (output / f"fold{fold}" / FOLD_TABLE).exists()
    }
    if not tables:
        say("no fold is finished: there are no out-of-fold predictions")
        return
    by_series = pd.concat(tables.values(), ignore_index=True)
    fold_table = pd.DataFrame({"patient_id": folds.index, "fold": folds.to_numpy()})
    absent = fold_table[
        fold_table.fold.isin(list(tables)) & ~fold_table.patient_id.isin(by_series.patient_id)
    ]
    if len(absent):
        first = absent.patient_id.iloc[0]
        warn(f"{len(absent)} labelled patients have no prepared series and get the prior, as {first}")
        absent = absent.assign(series_id="", **dict.fromkeys(COLUMNS, np.nan))
        predicted = [target for target in TARGETS if target not in missing_targets(by_series)]
        absent = fill_targets(absent, predicted, labels, fold_table)  # as if the run had predicted the prior
        by_series = pd.concat([by_series, absent], ignore_index=True)
    by_patient = combine_series(by_series)
    # targets that the run does not predict stay empty in the table per series, and get the prior here
    by_patient = fill_targets(by_patient, missing_targets(by_patient), labels, fold_table)
    labelled = {CHOSEN_BY: CHOSEN_BY_SCORE} if keep == "best" else {}
    write_table(by_series.assign(**labelled), output / "oof_series.csv")
    write_table(by_patient[["patient_id", "fold", *COLUMNS]].assign(**labelled), output / "oof.csv")
    rows = [_score_row(f"fold {fold}", part, labels) for fold, part in by_patient.groupby("fold")]
    name = "all" if len(tables) == len(numbers) else f"{len(tables)} folds"
    rows.append(_score_row(name, by_patient, labels))
    write_table(pd.DataFrame(rows).assign(**labelled), output / "scores.csv")
    say(format_table(rows))
    if labelled:
        warn_of_chosen_weights(output)
    say(f"out-of-fold predictions: {output / 'oof.csv'}")


def _score_row(name: str, predicted: pd.DataFrame, labels: pd.DataFrame) -> dict[str, object]:
    truth = labels[labels.patient_id.isin(predicted.patient_id)].reset_index(drop=True)
    scored = score(truth, predicted[["patient_id", *COLUMNS]])
    return {"fold": name, "patients": len(truth), "score": scored.score, **scored.losses}
