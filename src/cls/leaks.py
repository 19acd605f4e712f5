"""Guards against a patient on both sides of a split: in training and in what judges it."""

import pandas as pd

from src.core.errors import UserError


def refuse_shared_patients(training: pd.DataFrame, held_out: pd.DataFrame) -> None:
    """Make sure that nobody is trained on and held out, be it with another series.

    Args:
        training, held_out: rows with `patient_id, series_id`.

    Raises:
        UserError: a patient of both.
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
