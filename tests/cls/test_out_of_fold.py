"""The tables of a run, joined from its folds: their patients, missing targets and scores."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.cls.fold_models import FOLD_TABLE
from src.cls.out_of_fold import write_out_of_fold
from src.core.targets import COLUMNS, TARGETS
from src.data.labels import read_probabilities
from src.score.metric import score
from src.score.missing_targets import missing_targets
from src.score.prior import weight_aware_prior
from tests.helpers.score_frames import draw_labels, draw_predictions

LIVER = list(TARGETS["liver"])
OTHERS = [column for column in COLUMNS if column not in LIVER]
LOST = "105"


@pytest.fixture
def run(tmp_path) -> tuple[Path, pd.DataFrame, pd.Series]:
    """A finished run of two folds that predicts the liver only; a patient of fold 1 has no series."""
    labels = draw_labels(20)
    folds = pd.Series(np.arange(20) % 2, index=labels.patient_id, name="fold")
    table = draw_predictions(labels).assign(series_id="007", fold=folds.to_numpy())
    table = table[table.patient_id != LOST].assign(**dict.fromkeys(OTHERS, np.nan))
    for fold, own in table.groupby("fold"):
        (tmp_path / f"fold{fold}").mkdir()
        own.to_csv(tmp_path / f"fold{fold}" / FOLD_TABLE, index=False)
    return tmp_path, labels, folds


def test_write_out_of_fold_fills_missing_targets_by_patient_only(run):
    output, labels, folds = run
    write_out_of_fold(output, labels, folds)
    series, patients = (read_probabilities(output / name) for name in ("oof_series.csv", "oof.csv"))
    assert missing_targets(series) == ("bowel", "extravasation", "kidney", "spleen")
    assert missing_targets(patients) == ()
    for fold, own in patients.groupby("fold"):
        prior = weight_aware_prior(labels[labels.patient_id.map(folds) != fold])
        np.testing.assert_allclose(own[OTHERS], np.tile(prior[OTHERS], (len(own), 1)))


def test_write_out_of_fold_gives_a_patient_without_series_the_prior(run, capsys):
    output, labels, folds = run
    write_out_of_fold(output, labels, folds)
    assert "1 labelled patients have no prepared series and get the prior, as 105" in capsys.readouterr().err
    series, patients = (read_probabilities(output / name) for name in ("oof_series.csv", "oof.csv"))
    prior = weight_aware_prior(labels[labels.patient_id.map(folds) != 1])
    (own,) = series[series.patient_id == LOST].to_dict("records")
    assert (own["series_id"], own["fold"]) == ("", 1)
    assert [own[column] for column in LIVER] == pytest.approx(prior[LIVER].tolist())
    assert (series.series_id != "").sum() == 19
    (own,) = patients[patients.patient_id == LOST].to_dict("records")
    assert [own[column] for column in COLUMNS] == pytest.approx(prior[list(COLUMNS)].tolist())


def test_write_out_of_fold_scores_every_patient_of_finished_folds(run):
    output, labels, folds = run
    write_out_of_fold(output, labels, folds)
    scores = pd.read_csv(output / "scores.csv").set_index("fold")
    assert scores.patients.to_dict() == {"fold 0": 10, "fold 1": 10, "all": 20}
    assert scores.score["all"] == pytest.approx(score(labels, read_probabilities(output / "oof.csv")).score)
    (output / "fold1" / FOLD_TABLE).unlink()
    write_out_of_fold(output, labels, folds)
    assert pd.read_csv(output / "scores.csv").fold.tolist() == ["fold 0", "1 folds"]
    assert LOST not in set(read_probabilities(output / "oof.csv").patient_id)
