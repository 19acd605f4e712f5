"""The competition's tables: patient labels, series, image-level labels, tables of probabilities.

`patient_id` and `series_id` are strings in memory, so that any ids survive joins and rewriting.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.core.files import read_exact
from src.core.log import warn
from src.core.targets import COLUMNS, LABEL_COLUMNS, TARGETS

INJURY_NAMES = ("Active_Extravasation", "Bowel")
"""The two findings that image_level_labels.csv marks per slice."""

_ID_COLUMNS = ("patient_id", "series_id")


def read_table(path: str | Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV with ids as text, and check that it has `columns` and at least one row.

    Raises:
        UserError: no such file, not a CSV, a missing column, no row, or an empty id.
    """
    frame = _read_csv(Path(path), columns)
    for column in set(_ID_COLUMNS) & set(frame.columns):
        _refuse_empty(frame, column, path)
    return frame


def _read_csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"no table {path}: give the path of a CSV file")
    try:
        frame = read_exact(path, dtype=dict.fromkeys(_ID_COLUMNS, str), low_memory=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV table: {error}") from None
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        found = ", ".join(map(repr, frame.columns))
        raise UserError(
            f"{path} lacks the column {missing[0]}: it has {found[:300]}, and needs {', '.join(columns)}, "
            "separated by commas without spaces"
        )
    if frame.empty:
        raise UserError(f"{path} has no rows")
    return frame


def read_labels(path: str | Path) -> pd.DataFrame:
    """Read patient labels (train.csv, train_2024.csv or hidden test labels of the same form).

    Returns:
        `patient_id` (str) and the 14 label columns (int, 0 or 1), in the file's order. `any_injury` is
        derived if the file lacks it.

    Raises:
        UserError: a missing column, a value other than 0 and 1, a target without exactly one true class, an
            `any_injury` that contradicts the targets, or a duplicate patient.
    """
    frame = read_table(path, ("patient_id", *COLUMNS))
    _refuse_duplicates(frame, "patient_id", path)
    columns = [column for column in LABEL_COLUMNS if column in frame.columns]
    for column in columns:
        bad = ~frame[column].isin([0, 1])
        if bad.any():
            row = frame[bad].iloc[0]
            raise UserError(f"{path}: {column} of patient {row.patient_id} is {row[column]}, not 0 or 1")
    labels = frame[["patient_id", *columns]].astype(dict.fromkeys(columns, int))
    for target, names in TARGETS.items():
        bad = labels[list(names)].sum(axis=1) != 1
        if bad.any():
            patient = labels.patient_id[bad].iloc[0]
            raise UserError(
                f"{path}: patient {patient} must have exactly one 1 among {', '.join(names)} ({target})"
            )
    injured = (labels[[names[0] for names in TARGETS.values()]] == 0).any(axis=1).astype(int)
    if "any_injury" in labels and (labels.any_injury != injured).any():
        patient = labels.patient_id[labels.any_injury != injured].iloc[0]
        raise UserError(f"{path}: any_injury of patient {patient} contradicts the patient's other labels")
    return labels.assign(any_injury=injured)


def read_series_meta(path: str | Path) -> pd.DataFrame:
    """Read train_series_meta.csv or test_series_meta.csv (which has no `incomplete_organ`).

    Returns:
        `patient_id`, `series_id` (str), `aortic_hu` (HU) and, if the file has it, `incomplete_organ` (0 or
        1).

    Raises:
        UserError: a missing column or a duplicate series.
    """
    frame = read_table(path, ("patient_id", "series_id", "aortic_hu"))
    _refuse_duplicates(frame, "series_id", path)
    return frame


def read_image_level_labels(path: str | Path) -> pd.DataFrame:
    """Read image_level_labels.csv: the slices that show extravasation or a bowel injury.

    Returns:
        `patient_id`, `series_id` (str), `instance_number` (int, DICOM tag (0020,0013)) and `injury_name`, one
        of `INJURY_NAMES`. A slice may have both findings, in two rows.

    Raises:
        UserError: a missing column, an unknown finding, or an instance number that is not an integer.
    """
    frame = read_table(path, ("patient_id", "series_id", "instance_number", "injury_name"))
    unknown = ~frame.injury_name.isin(INJURY_NAMES)
    if unknown.any():
        name = frame.injury_name[unknown].iloc[0]
        raise UserError(f"{path}: unknown injury_name {name}; known are {', '.join(INJURY_NAMES)}")
    if not pd.api.types.is_integer_dtype(frame.instance_number):
        raise UserError(f"{path}: instance_number must hold whole numbers only")
    return frame


CHOSEN_BY, CHOSEN_BY_SCORE = "weights_chosen_by", "held-out score"
"""Column of out-of-fold tables whose networks were chosen by their score on these patients, and its value."""


def warn_of_chosen_weights(path: Path) -> None:
    """Warn that scores of out-of-fold predictions would be worse on other patients."""
    warn(f"{path}: --keep best chose the weights by their score on these patients, so it flatters them")


def read_probabilities(path: str | Path) -> pd.DataFrame:
    """Read a table in the competition's columns: a submission, its sample, or out-of-fold predictions.

    Returns:
        `patient_id` (str), `series_id` (str) and `fold` (int) if the file has them, and the 13 columns as in
        the file; `score.metric` checks the values. `series_id` is "" in the row of a patient without a usable
        series.

    Raises:
        UserError: a missing column, an empty `patient_id`, or a `fold` that is not an integer.
    """
    frame = _read_csv(Path(path), ("patient_id", *COLUMNS))
    _refuse_empty(frame, "patient_id", path)
    if CHOSEN_BY in frame.columns:
        warn_of_chosen_weights(path)
    if "series_id" in frame.columns:
        frame["series_id"] = frame["series_id"].fillna("")
    if "fold" in frame.columns and not pd.api.types.is_integer_dtype(frame.fold):
        raise UserError(f"{path}: fold must hold whole numbers only")
    return frame[[name for name in (*_ID_COLUMNS, "fold", *COLUMNS) if name in frame.columns]]


def _refuse_duplicates(frame: pd.DataFrame, column: str, path: str | Path) -> None:
    repeated = frame[column].duplicated()
    if repeated.any():
        raise UserError(f"{path} has {column} {frame[column][repeated].iloc[0]} twice: keep one row of it")


def _refuse_empty(frame: pd.DataFrame, column: str, path: str | Path) -> None:
    if frame[column].isna().any():
        raise UserError(f"{path} has an empty {column} in line {_first_line(frame[column].isna())}")


def _first_line(bad: pd.Series) -> int:
    """Return the line of the file (the header is line 1) of the first bad row."""
    return int(np.flatnonzero(bad)[0]) + 2
