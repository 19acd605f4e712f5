"""A submission is one row per patient, in the sample's order, and never an invalid one."""

import numpy as np
import pandas as pd
import pytest

from src.core.errors import UserError
from src.core.targets import COLUMNS, TARGETS
from src.data.labels import read_probabilities
from src.score.missing_targets import missing_targets
from src.score.submission import combine_series, combine_tables, validate_submission, write_submission
from tests.helpers.score_frames import as_submission, draw_labels, draw_predictions

OTHERS = tuple(column for column in COLUMNS if column not in TARGETS["liver"])


@pytest.fixture
def sample() -> pd.DataFrame:
    return as_submission(draw_predictions(draw_labels(4))).assign(**dict.fromkeys(COLUMNS, 0.5))


@pytest.fixture
def predictions() -> pd.DataFrame:
    return as_submission(draw_predictions(draw_labels(4)))


def test_combine_series_averages_the_series_of_a_patient():
    rows = draw_predictions(draw_labels(3)).assign(
        patient_id=["1", "2", "1"], series_id=["a", "b", "c"], fold=[0, 1, 0]
    )
    combined = combine_series(rows)
    assert combined.patient_id.tolist() == ["1", "2"]
    assert combined.fold.tolist() == [0, 1]
    assert combined.liver_high[0] == pytest.approx((rows.liver_high[0] + rows.liver_high[2]) / 2)
    assert combined.liver_high[1] == rows.liver_high[1]


@pytest.mark.parametrize("columns", [["liver_high"], list(TARGETS["liver"])], ids=["a column", "a target"])
def test_combine_series_refuses_what_is_empty_in_some_rows(columns):
    rows = draw_predictions(draw_labels(2)).assign(patient_id=["1", "2"])
    rows.loc[1, columns] = np.nan
    with pytest.raises(UserError, match=f"{columns[0]} of patient 2 is not a finite number"):
        combine_series(rows)


def test_combine_series_keeps_missing_targets_empty():
    rows = draw_predictions(draw_labels(3)).assign(patient_id=["1", "2", "1"])
    combined = combine_series(rows.assign(**dict.fromkeys(TARGETS["liver"], np.nan)))
    pd.testing.assert_frame_equal(combined[list(OTHERS)], combine_series(rows)[list(OTHERS)])
    assert combined[list(TARGETS["liver"])].isna().all(axis=None)
    with pytest.raises(UserError, match="the columns of every target are empty"):
        combine_series(rows.assign(**dict.fromkeys(COLUMNS, np.nan)))
    with pytest.raises(UserError, match="liver_low of patient 1 is not a finite number"):
        combine_series(rows.assign(liver_low=np.nan))


def test_combine_series_refuses_a_patient_in_two_folds():
    rows = draw_predictions(draw_labels(2)).assign(patient_id="1", fold=[0, 1])
    with pytest.raises(UserError, match="patient 1 is in more than one fold"):
        combine_series(rows)


def test_combine_tables_averages_by_patient_in_any_order(predictions):
    other = as_submission(draw_predictions(draw_labels(4), seed=9))
    turned = other.iloc[::-1].reset_index(drop=True).assign(fold=[3, 2, 1, 0])
    combined = combine_tables([predictions, turned])
    mean = (predictions[list(COLUMNS)] + other[list(COLUMNS)]) / 2
    assert combined[list(COLUMNS)].to_numpy() == pytest.approx(mean.to_numpy())
    assert combined.fold.tolist() == [0, 1, 2, 3]


def test_combine_tables_averages_a_target_over_tables_that_predict_it(predictions):
    few = predictions.assign(**dict.fromkeys(OTHERS, np.nan), liver_low=1.0)
    combined = combine_tables([few, predictions, few])
    pd.testing.assert_frame_equal(combined[list(OTHERS)], predictions[list(OTHERS)])
    assert combined.liver_low.to_numpy() == pytest.approx((predictions.liver_low + 2) / 3)
    assert missing_targets(combine_tables([few, few])) == ("bowel", "extravasation", "kidney", "spleen")


def test_combine_tables_refuses_a_gap_in_one_table(predictions):
    gap = predictions.copy()
    gap.loc[2, list(TARGETS["liver"])] = np.nan
    with pytest.raises(UserError, match="liver_healthy of patient 102 is not a finite number"):
        combine_tables([predictions, gap])


def test_read_probabilities_accepts_an_empty_series_but_no_empty_patient(tmp_path, predictions):
    table = predictions.assign(series_id=["007", None, "8", "9"])
    table.to_csv(tmp_path / "oof.csv", index=False)
    assert read_probabilities(tmp_path / "oof.csv").series_id.tolist() == ["007", "", "8", "9"]
    table.assign(patient_id=["100", "101", None, "103"]).to_csv(tmp_path / "oof.csv", index=False)
    with pytest.raises(UserError, match="has an empty patient_id in line 4"):
        read_probabilities(tmp_path / "oof.csv")


def test_combine_tables_refuses_other_patients_or_folds(predictions):
    with pytest.raises(UserError, match="lack 1 of the 4 patients of the first table, the first is 103"):
        combine_tables([predictions, predictions.iloc[:3]])
    with pytest.raises(UserError, match="patient 102 in different folds"):
        combine_tables([predictions.assign(fold=0), predictions.assign(fold=[0, 0, 1, 0])])


def test_write_submission_keeps_the_samples_order_and_exact_values(tmp_path, sample, predictions):
    shuffled = predictions.iloc[::-1].assign(fold=0)[["fold", *reversed(predictions.columns)]]
    write_submission(shuffled, sample, tmp_path / "submission.csv")
    pd.testing.assert_frame_equal(read_probabilities(tmp_path / "submission.csv"), predictions)
    validate_submission(read_probabilities(tmp_path / "submission.csv"), sample)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="spleen_low"), "lacks the column spleen_low"),
        (lambda frame: frame.assign(any_injury=0.5), "these columns in this order"),
        (lambda frame: frame.iloc[:3], "submission lack 1 of the 4 patients .* first is 103"),
        (lambda frame: frame.iloc[[0, 2, 1, 3]], "order of the sample, from patient 102 on"),
        (lambda frame: frame.assign(spleen_low=[0.1, 0.1, np.nan, 0.1]), "spleen_low of patient 102"),
        (lambda frame: frame.assign(bowel_healthy=np.nan, bowel_injury=np.nan), "bowel_healthy of patient"),
    ],
)
def test_validate_submission_refuses_every_fault(sample, predictions, change, message):
    validate_submission(predictions, sample)
    with pytest.raises(UserError, match=message):
        validate_submission(change(predictions), sample)


def test_write_submission_leaves_no_invalid_file(tmp_path, sample, predictions):
    with pytest.raises(UserError, match="not a finite number"):
        write_submission(predictions.assign(liver_low=np.nan), sample, tmp_path / "submission.csv")
    assert list(tmp_path.iterdir()) == []
