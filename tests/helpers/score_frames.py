"""Small random tables in the competition's columns, and where the real label tables may lie."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.core.targets import COLUMNS, TARGETS

RSNA_TABLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "rsna2023"

needs_rsna_tables = pytest.mark.skipif(
    not (RSNA_TABLES / "train.csv").is_file(), reason="the competition's label tables are not at hand"
)


def draw_labels(patients: int, seed: int = 0, injury_rate: float = 0.3) -> pd.DataFrame:
    """Labels of patients 100, 101, ...: every target injured at `injury_rate`, grades equally likely."""
    rng = np.random.default_rng(seed)
    labels = pd.DataFrame({"patient_id": [str(100 + row) for row in range(patients)]})
    for columns in TARGETS.values():
        grade = np.where(rng.random(patients) < injury_rate, rng.integers(1, len(columns), patients), 0)
        labels[list(columns)] = np.eye(len(columns), dtype=int)[grade]
    return labels.assign(
        any_injury=(labels[[columns[0] for columns in TARGETS.values()]] == 0).any(axis=1).astype(int)
    )


def draw_predictions(labels: pd.DataFrame, seed: int = 1, skill: float = 1.0) -> pd.DataFrame:
    """Positive, unnormalised predictions that lean towards the truth by `skill`."""
    noise = np.random.default_rng(seed).normal(size=(len(labels), len(COLUMNS)))
    values = np.exp(skill * labels[list(COLUMNS)].to_numpy() + noise)
    return pd.DataFrame(values, columns=list(COLUMNS)).assign(patient_id=labels.patient_id.to_numpy())


def as_submission(predictions: pd.DataFrame) -> pd.DataFrame:
    """The competition's 14 columns in order."""
    return predictions[["patient_id", *COLUMNS]]


def healthy_but(*changes: dict[str, float]) -> pd.DataFrame:
    """Patients 0, 1, ... who are healthy for certain, but for the changes."""
    healthy = {column: float(column.endswith("_healthy")) for column in COLUMNS}
    rows = [{"patient_id": str(number), **healthy, **change} for number, change in enumerate(changes)]
    return pd.DataFrame(rows)
