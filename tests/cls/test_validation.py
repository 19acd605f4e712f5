"""Scores of the held-out fold during training: they are recorded, and choose weights only when asked to."""

import pandas as pd
import pytest

import train_cls
from src.cls.fold_models import read_about
from src.core.errors import UserError
from src.core.targets import COLUMNS, TARGETS
from src.data.labels import read_probabilities
from tests.helpers.training_runs import interrupted_after_saves

GIVEN = {"fold": "0", "epochs": 3, "lr": "5e-3", "ema_decay": 0.5}


def out_of_fold(run):
    return pd.read_csv(run / "oof_series.csv")[list(COLUMNS)].to_numpy()


def test_validate_every_records_scores_and_changes_no_prediction(run_arguments, tmp_path, capsys):
    train_cls.main(run_arguments("plain", **GIVEN))
    assert "held-out score" not in capsys.readouterr().out
    train_cls.main(run_arguments("scored", **GIVEN, validate_every=2))
    assert capsys.readouterr().out.count("held-out score") == 2  # epochs 2 and 3, the last
    metrics = pd.read_csv(tmp_path / "scored/fold0/metrics.csv")
    assert metrics.step[metrics.val_score.notna()].tolist() == [2, 3]
    losses = metrics[[f"val_{name}" for name in (*TARGETS, "any_injury")]].iloc[-1]
    assert metrics.val_score.iloc[-1] == pytest.approx(losses.mean())
    scores = pd.read_csv(tmp_path / "scored/scores.csv")
    assert scores.score.iloc[0] == pytest.approx(metrics.val_score.iloc[-1], abs=1e-5)
    assert (out_of_fold(tmp_path / "scored") == out_of_fold(tmp_path / "plain")).all()


def test_validate_every_of_one_target_scores_this_target(run_arguments, tmp_path):
    train_cls.main(run_arguments(**GIVEN | {"epochs": 1}, targets="liver", validate_every=1))
    (row,) = pd.read_csv(tmp_path / "run/fold0/metrics.csv").to_dict("records")
    assert row["val_score"] == row["val_liver"] and "val_spleen" not in row
    scores = pd.read_csv(tmp_path / "run/scores.csv")
    assert scores.liver.iloc[0] == pytest.approx(row["val_liver"], abs=1e-5)


def test_keep_best_takes_the_best_epoch_and_labels_its_tables(run_arguments, tmp_path, capsys):
    # a rate that grows worse: the best epoch is not the last
    given = GIVEN | {"lr": "3e-2", "epochs": 4, "ema_decay": 0.0, "validate_every": 1}
    train_cls.main(run_arguments(**given, keep="best"))
    metrics = pd.read_csv(tmp_path / "run/fold0/metrics.csv")
    best = metrics.val_score.min()
    assert best < metrics.val_score.iloc[-1]
    scores = pd.read_csv(tmp_path / "run/scores.csv")
    assert scores.score.iloc[0] == pytest.approx(best, abs=1e-5)
    assert "--keep best chose the weights by their score" in capsys.readouterr().err
    tables = ("oof_series.csv", "oof.csv", "scores.csv")
    assert all("weights_chosen_by" in pd.read_csv(tmp_path / "run" / name) for name in tables)
    read_probabilities(tmp_path / "run/oof.csv")
    assert "flatters" in capsys.readouterr().err


def test_keep_best_continues_an_interrupted_run(run_arguments, tmp_path):
    given = GIVEN | {"lr": "3e-2", "ema_decay": 0.0, "validate_every": 1, "keep": "best"}
    train_cls.main(run_arguments("whole", **given))
    with interrupted_after_saves():
        train_cls.main(run_arguments("broken", **given))
    train_cls.main(run_arguments("broken", **given))
    assert pd.read_csv(tmp_path / "broken/fold0/metrics.csv").val_score.idxmin() == 0
    assert (out_of_fold(tmp_path / "broken") == out_of_fold(tmp_path / "whole")).all()


def test_keep_best_needs_scores_of_a_held_out_fold(run_arguments):
    with pytest.raises(UserError, match="--keep best takes the best of the scores by --validate-every"):
        train_cls.main(run_arguments(keep="best"))
    with pytest.raises(UserError, match="--keep best needs held-out patients"):
        train_cls.main(run_arguments(fold="all", keep="best", validate_every=1))


def test_fold_all_trains_on_every_patient_and_has_no_out_of_fold_table(run_arguments, tmp_path, capsys):
    given = {"epochs": 1, "lr": "1e-3"}
    train_cls.main(run_arguments(**given))
    tables = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.csv")}
    assert len(tables) == 3
    train_cls.main(run_arguments(**given, fold="all all1"))
    assert {path: path.read_bytes() for path in tables} == tables
    weights = []
    for name in ("all0", "all1"):
        folder = tmp_path / "run" / name
        assert not (folder / "oof_series.csv").exists()
        weights.append((folder / "model.safetensors").read_bytes())
    seen = set(read_about(tmp_path / "run/all0/model.safetensors")["training_patients"])
    held_out = {str(each) for each in read_probabilities(tmp_path / "run/oof_series.csv").patient_id}
    assert seen == held_out and weights[0] != weights[1]
    capsys.readouterr()
    train_cls.main(run_arguments(**given, fold="all0"))
    assert "all0 is finished" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"was trained on the labels of \d+ of the \d+ held-out patients of fold1"
    ):
        train_cls.main(
            run_arguments("other", **given, fold="1", first_weights=tmp_path / "run/all0/model.safetensors")
        )


def test_fold_all_alone_says_that_there_are_no_out_of_fold_predictions(run_arguments, tmp_path, capsys):
    train_cls.main(run_arguments(fold="all", epochs=1))
    assert "no fold is finished: there are no out-of-fold predictions" in capsys.readouterr().out
    assert not (tmp_path / "run/oof.csv").exists()
