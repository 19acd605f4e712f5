"""Label tables are read as they really are, and a broken one is refused in one line."""

import pandas as pd
import pytest

from src.core.errors import UserError
from src.core.targets import LABEL_COLUMNS
from src.data.labels import read_image_level_labels, read_labels, read_probabilities, read_series_meta
from tests.helpers.score_frames import RSNA_TABLES, draw_labels, draw_predictions, needs_rsna_tables


@pytest.fixture
def write(tmp_path):
    def write_csv(frame: pd.DataFrame):
        frame.to_csv(tmp_path / "table.csv", index=False)
        return tmp_path / "table.csv"

    return write_csv


def test_read_labels_keeps_values_and_text_ids(write):
    labels = draw_labels(12).assign(patient_id=[f"{row:03d}" for row in range(12)])
    pd.testing.assert_frame_equal(read_labels(write(labels)), labels, check_dtype=False)
    assert read_labels(write(labels)).patient_id.iloc[7] == "007"


def test_read_labels_derives_any_injury(write):
    labels = draw_labels(12)
    derived = read_labels(write(labels.drop(columns="any_injury"))).any_injury
    assert derived.tolist() == labels.any_injury.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="kidney_low"), "lacks the column kidney_low"),
        (lambda frame: frame.assign(bowel_injury=[0, 2, 0]), "bowel_injury of patient 101 is 2, not 0 or 1"),
        (lambda frame: frame.assign(bowel_injury=[0, None, 0]), "bowel_injury of patient 101"),
        (lambda frame: frame.assign(liver_healthy=1, liver_low=1, liver_high=0), "patient 100 .* one 1"),
        (
            lambda frame: frame.assign(any_injury=1 - frame.any_injury),
            "any_injury of patient 100 contradicts",
        ),
        (lambda frame: frame.assign(patient_id=["5", "6", "5"]), "patient_id 5 twice"),
        (lambda frame: frame.assign(patient_id=["5", None, "6"]), "empty patient_id in line 3"),
        (lambda frame: frame.iloc[:0], "has no rows"),
    ],
)
def test_read_labels_refuses_a_broken_table(write, change, message):
    with pytest.raises(UserError, match=message) as refusal:
        read_labels(write(change(draw_labels(3))))
    assert "\n" not in str(refusal.value)


def test_read_labels_refuses_a_missing_or_empty_file(tmp_path):
    with pytest.raises(UserError, match="no table"):
        read_labels(tmp_path / "absent.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(UserError, match="not a CSV table"):
        read_labels(tmp_path / "empty.csv")


def test_read_series_meta_accepts_the_test_table(write):
    series = {"patient_id": ["1", "1"], "series_id": ["10", "11"], "aortic_hu": [200.5, -1024.0]}
    assert read_series_meta(write(pd.DataFrame(series))).series_id.tolist() == ["10", "11"]


def test_read_image_level_labels_refuses_an_unknown_finding(write):
    row = {"patient_id": "1", "series_id": "2", "instance_number": 3, "injury_name": "Liver"}
    with pytest.raises(UserError, match="unknown injury_name Liver"):
        read_image_level_labels(write(pd.DataFrame([row])))


def test_read_probabilities_keeps_series_and_fold(write):
    predictions = draw_predictions(draw_labels(3)).assign(series_id=["7", "8", "9"], fold=[0, 1, 0], note="x")
    read = read_probabilities(write(predictions))
    assert read.columns[:3].tolist() == ["patient_id", "series_id", "fold"]
    assert "note" not in read.columns
    assert read.liver_low.tolist() == predictions.liver_low.tolist()


@needs_rsna_tables
def test_readers_accept_the_competition_tables():
    labels = read_labels(RSNA_TABLES / "train.csv")
    assert labels.shape == (3147, 1 + len(LABEL_COLUMNS))
    assert labels[["bowel_injury", "extravasation_injury", "any_injury"]].sum().tolist() == [64, 200, 855]
    series = read_series_meta(RSNA_TABLES / "train_series_meta.csv")
    assert (series.groupby("patient_id").size() == 2).sum() == 1564
    assert "incomplete_organ" not in read_series_meta(RSNA_TABLES / "test_series_meta.csv")
    slices = read_image_level_labels(RSNA_TABLES / "image_level_labels.csv")
    assert slices.injury_name.value_counts().to_dict() == {"Active_Extravasation": 6370, "Bowel": 5659}
