"""Folds share injuries out evenly, never split a patient, and are the same on every run."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.core.errors import UserError
from src.core.targets import INJURIES
from src.data.folds import count_per_fold, main, make_folds, read_folds
from src.data.labels import read_labels, read_series_meta
from tests.helpers.score_frames import RSNA_TABLES, draw_labels, needs_rsna_tables

COMMITTED = Path(__file__).resolve().parents[2] / "folds" / "rsna2023_5fold.csv"


def series_counts(labels: pd.DataFrame) -> pd.Series:
    return pd.Series(np.arange(len(labels)) % 2 + 1, index=labels.patient_id)


def test_make_folds_balances_injuries_and_numbers_of_series():
    labels = draw_labels(300, injury_rate=0.2)
    folds = make_folds(labels, series_counts(labels))
    assert sorted(folds.patient_id) == sorted(labels.patient_id) and set(folds.fold) == {0, 1, 2, 3, 4}
    counts = count_per_fold(labels, series_counts(labels), folds)
    spread = counts.max() - counts.min()
    assert spread["patients"] <= 4
    assert spread["multi_series"] <= 4
    assert spread[list(INJURIES)].max() <= 4  # of about 6 positives a fold for every grade


def test_make_folds_ignores_the_order_of_rows():
    labels = draw_labels(60)
    counts = series_counts(labels)
    folds = make_folds(labels, counts, seed=7)
    pd.testing.assert_frame_equal(folds, make_folds(labels.sample(frac=1, random_state=0), counts, seed=7))
    assert not folds.equals(make_folds(labels, counts, seed=8))


def test_make_folds_sorts_ids_numerically():
    labels = draw_labels(6).assign(patient_id=["10", "9", "100", "1", "2", "33"])
    folds = make_folds(labels, series_counts(labels), n_folds=2)
    assert folds.patient_id.tolist() == ["1", "2", "9", "10", "33", "100"]


def test_make_folds_refuses_patients_without_series_or_labels():
    labels = draw_labels(10)
    with pytest.raises(UserError, match="1 patients have labels but no series, the first is 109"):
        make_folds(labels, series_counts(labels).iloc[:-1])
    with pytest.raises(UserError, match="series but no labels, the first is 100"):
        make_folds(labels.iloc[1:], series_counts(labels))
    with pytest.raises(UserError, match="11 folds of 10 patients"):
        make_folds(labels, series_counts(labels), n_folds=11)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("1", 0), ("2", 1), ("1", 1)], r"patient 1 twice, in folds \[0, 1\]"),
        ([("1", 0), ("2", 2)], r"numbered 0, 1, ... without a gap, got \[0, 2\]"),
        ([("1", 0), ("2", 0.5)], "numbered 0, 1"),
        ([("1", 0), ("3", 1)], "no fold for 1 of 2 patients, the first is 2"),
    ],
)
def test_read_folds_refuses_broken_folds(tmp_path, rows, message):
    pd.DataFrame(rows, columns=["patient_id", "fold"]).to_csv(tmp_path / "folds.csv", index=False)
    with pytest.raises(UserError, match=message):
        read_folds(tmp_path / "folds.csv", ["1", "2"])


def test_read_folds_keeps_the_requested_patients(tmp_path):
    folds = pd.DataFrame({"patient_id": ["1", "2", "3"], "fold": [0, 1, 2]})
    folds.to_csv(tmp_path / "folds.csv", index=False)
    chosen = read_folds(tmp_path / "folds.csv", ["3", "1"])
    assert chosen.to_dict("list") == {"patient_id": ["1", "3"], "fold": [0, 2]}


@needs_rsna_tables
def test_main_makes_the_committed_folds(tmp_path, capsys):
    tables = f"--labels {RSNA_TABLES}/train.csv --series {RSNA_TABLES}/train_series_meta.csv"
    main(f"{tables} --output {tmp_path}/folds.csv".split())
    assert (tmp_path / "folds.csv").read_bytes() == COMMITTED.read_bytes()
    checksum = capsys.readouterr().out.split("sha256 ")[1].strip()
    assert checksum in (COMMITTED.parent / "README.md").read_text()


@needs_rsna_tables
def test_committed_folds_balance_the_competition_labels():
    labels = read_labels(RSNA_TABLES / "train.csv")
    counts = read_series_meta(RSNA_TABLES / "train_series_meta.csv").groupby("patient_id").size()
    table = count_per_fold(labels, counts, read_folds(COMMITTED, labels.patient_id))
    assert (table.max() - table.min())[["patients", "multi_series", *INJURIES]].max() <= 1
