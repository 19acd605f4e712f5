"""Join predictions of several series and models to one row per patient and a valid submission.csv."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.core.files import write_table
from src.core.targets import COLUMNS, TARGETS
from src.score.metric import align, check_probabilities
from src.score.missing_targets import check_predicted_targets, missing_targets


def combine_series(frame: pd.DataFrame) -> pd.DataFrame:
    """Average each patient's rows: every series counts equally, regardless of its number of slices.

    Args:
        frame: `patient_id`, the 13 columns and, optionally, `series_id` and `fold`; one row per series.
            Missing targets stay empty.

    Returns:
        `patient_id`, `fold` if present, and the 13 columns; one row per patient, in order of first
        appearance.

    Raises:
        UserError: a value that the metric refuses (a plain mean would hide it), a patient in two folds, or no
            target at all.
    """
    check_predicted_targets(frame)
    if len(missing_targets(frame)) == len(TARGETS):
        raise UserError("predictions: the columns of every target are empty")
    by_patient = frame.groupby("patient_id", sort=False)
    combined = by_patient[list(COLUMNS)].mean()
    if "fold" in frame.columns:
        spread = by_patient.fold.nunique()
        if (spread > 1).any():
            raise UserError(f"predictions: patient {spread.index[spread > 1][0]} is in more than one fold")
        combined.insert(0, "fold", by_patient.fold.first())
    return combined.reset_index()


def one_row_per_patient(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Apply `combine_series` to every table; error messages begin with the table's name."""
    combined = {}
    for name, table in tables.items():
        try:
            combined[name] = combine_series(table)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    return combined


def folds_differ(tables: Iterable[pd.DataFrame]) -> bool:
    """Return whether tables with one row per patient assign a patient to different folds."""
    folds = [table.set_index("patient_id").fold for table in tables if "fold" in table.columns]
    return any((fold != folds[0].reindex(fold.index).fillna(fold)).any() for fold in folds[1:])


def combine_tables(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Average tables of the same patients (one model each); all tables that predict a target count equally.

    Args:
        tables: `patient_id`, the 13 columns and, optionally, `fold`; one row per patient, with a plain index.

    Returns:
        The 13 columns, `patient_id`, and `fold` if a table has it, in the order of the first table. A target
        that all tables lack is empty.

    Raises:
        UserError: tables of different patients, a patient in different folds, or a value the metric refuses.
    """
    for table in tables:
        check_predicted_targets(table)
    first, *others = tables
    aligned = [first, *(align(table, first.patient_id, "other tables", "first table") for table in others)]
    folds = [table.fold for table in aligned if "fold" in table.columns]
    for fold in folds[1:]:
        if (fold != folds[0]).any():
            patient = first.patient_id[fold != folds[0]].iloc[0]
            raise UserError(f"predictions: the tables put patient {patient} in different folds")
    values = np.stack([table[list(COLUMNS)].to_numpy(np.float64) for table in aligned])
    is_predicted = ~np.isnan(values)
    counts = is_predicted.sum(axis=0)  # (patients, 13), tables
    mean = np.where(is_predicted, values, 0.0).sum(axis=0) / np.where(counts, counts, np.nan)
    combined = pd.DataFrame(mean, columns=list(COLUMNS)).assign(patient_id=first.patient_id)
    return combined.assign(fold=folds[0]) if folds else combined


def validate_submission(frame: pd.DataFrame, sample: pd.DataFrame) -> None:
    """Check that the competition would accept `frame`: the sample's columns, patients and order.

    Args:
        sample: sample_submission.csv with `patient_id` as text.

    Raises:
        UserError: the first problem, with its column or patient.
    """
    absent = [column for column in sample.columns if column not in frame.columns]
    if absent:
        raise UserError(f"the submission lacks the column {absent[0]}")
    if list(frame.columns) != list(sample.columns):
        raise UserError(f"the submission must have these columns in this order: {', '.join(sample.columns)}")
    ordered = align(frame, sample.patient_id, "rows of the submission", "rows of the sample")
    moved = frame.patient_id.to_numpy() != ordered.patient_id.to_numpy()
    if moved.any():
        patient = frame.patient_id.to_numpy()[moved][0]
        raise UserError(
            f"the submission's rows are not in the order of the sample, from patient {patient} on"
        )
    check_probabilities(frame)


def write_submission(frame: pd.DataFrame, sample: pd.DataFrame, path: str | Path) -> None:
    """Write submission.csv with the sample's columns and order; nothing is written unless it is valid.

    Args:
        frame: one row per patient, in any order; further columns are dropped.
    """
    ordered = align(frame, sample.patient_id, "rows of the submission", "rows of the sample")
    submission = ordered[[column for column in sample.columns if column in frame.columns]]
    validate_submission(submission, sample)
    write_table(submission, path)
