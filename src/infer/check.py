"""Whether a submission would be accepted."""

from pathlib import Path

import pandas as pd

from src.core.errors import UserError
from src.core.targets import COLUMNS
from src.data.labels import read_table
from src.score.submission import validate_submission


def read_sample(path: str | Path) -> pd.DataFrame:
    """Read sample_submission.csv, its `patient_id` as text.

    Raises:
        UserError: not such a table, no patient, or one twice.
    """
    sample = read_table(path, ("patient_id", *COLUMNS))
    twice = sample.patient_id.duplicated()
    if twice.any():
        raise UserError(f"{path} names patient {sample.patient_id[twice].iloc[0]} twice")
    return sample


def check_submission(path: str | Path, sample: str | Path) -> int:
    """Judge a submission as the competition would: columns, patients, their order, and every value.

    Args:
        sample: sample_submission.csv.

    Returns:
        The number of patients.

    Raises:
        UserError: what is wrong first.
    """
    wanted = read_sample(sample)
    frame = read_table(path, ("patient_id",))
    try:
        validate_submission(frame, wanted)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return len(frame)
