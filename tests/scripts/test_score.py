"""score.py from its command line: figures, JSON, folds that were not trained, and one-line refusals."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import score as score_script
from src.core.errors import UserError
from src.core.targets import COLUMNS
from src.score.metric import score
from src.score.postprocess import read_post
from src.score.prior import cross_fitted_prior, weight_aware_prior
from tests.helpers.score_frames import as_submission, draw_labels, draw_predictions


@pytest.fixture
def study(tmp_path):
    """Labels, folds and an out-of-fold table with two series for half of the patients, as files."""
    labels = draw_labels(40)
    folds = pd.DataFrame({"patient_id": labels.patient_id, "fold": [row % 4 for row in range(40)]})
    first = draw_predictions(labels).merge(folds).assign(series_id="1")
    second = draw_predictions(labels, seed=5).merge(folds).assign(series_id="2").iloc[::2]
    series = pd.concat([first, second])
    labels.to_csv(tmp_path / "labels.csv", index=False)
    folds.to_csv(tmp_path / "folds.csv", index=False)
    series.to_csv(tmp_path / "oof_series.csv", index=False)
    mean = series.groupby("patient_id")[["fold", *COLUMNS]].mean().astype({"fold": int}).reset_index()
    mean.to_csv(tmp_path / "oof.csv", index=False)
    return tmp_path, labels, folds, mean


def run(folder: Path, *arguments: str) -> dict:
    """The JSON of one run; arguments that name a file of `folder` become its path."""
    places = [str(folder / argument) if (folder / argument).is_file() else argument for argument in arguments]
    score_script.main([*places, "--labels", str(folder / "labels.csv"), "--json", str(folder / "score.json")])
    return json.loads((folder / "score.json").read_text())


def test_score_writes_the_metric_overall_and_by_fold(study):
    folder, labels, folds, mean = study
    report = run(folder, "--oof", "oof.csv")
    expected = score(labels, mean)
    assert report["score"] == pytest.approx(expected.score)
    assert report["losses"] == pytest.approx(expected.losses)
    assert [fold["fold"] for fold in report["folds"]] == [0, 1, 2, 3]
    inside = folds.patient_id[folds.fold == 2]
    of_fold = score(labels[labels.patient_id.isin(inside)], mean[mean.patient_id.isin(inside)])
    assert report["folds"][2]["patients"] == 10
    assert report["folds"][2]["score"] == pytest.approx(of_fold.score)
    assert report["auc"]["liver_low"]["positives"] == labels.liver_low.sum()


def test_score_compares_with_priors_of_the_other_folds(study):
    folder, labels, folds, _ = study
    report = run(folder, "--oof", "oof.csv", "--level", "0.8")
    prior = score(labels, cross_fitted_prior(labels, folds, weight_aware_prior)).score
    assert report["prior"]["score"] == pytest.approx(prior)
    assert report["raised_prior"]["score"] < prior
    assert report["difference"]["observed"] == pytest.approx(report["score"] - prior)
    assert report["difference"]["level"] == 0.8
    assert report["difference"]["low"] < report["difference"]["mean"] < report["difference"]["high"]


def test_score_averages_series_and_tables(study):
    folder, *_ = study
    by_series, by_patient = run(folder, "--oof", "oof_series.csv"), run(folder, "--oof", "oof.csv")
    both = run(folder, "--oof", "oof_series.csv", "oof.csv")
    assert by_series["score"] == pytest.approx(by_patient["score"])
    assert both["score"] == pytest.approx(by_patient["score"])


def test_score_of_a_table_without_folds_is_overall_only(study, capsys):
    folder, labels, _, mean = study
    mean.drop(columns="fold").to_csv(folder / "other_kit.csv", index=False)
    report = run(folder, "--oof", "other_kit.csv")
    assert report["score"] == pytest.approx(score(labels, mean).score)
    assert report["folds"] == [] and "prior" not in report
    assert "no folds are known" in capsys.readouterr().out
    assert len(run(folder, "--oof", "other_kit.csv", "--folds", "folds.csv")["folds"]) == 4


def test_score_of_one_fold_counts_its_patients_only(study, capsys):
    folder, _, _, mean = study
    mean[mean.fold == 1].to_csv(folder / "fold1.csv", index=False)
    report = run(folder, "--oof", "fold1.csv", "--folds", "folds.csv")
    assert (report["patients"], len(report["folds"])) == (10, 1)
    assert "only the folds in the tables are scored: 1 (10 of 40 patients)" in capsys.readouterr().out
    assert "difference" in report


def test_score_refuses_a_fold_with_a_missing_patient(study):
    folder, _, _, mean = study
    mean[mean.fold == 1].iloc[:-1].to_csv(folder / "gap.csv", index=False)
    with pytest.raises(UserError, match="the predictions lack 1 of the 10 patients"):
        run(folder, "--oof", "gap.csv", "--folds", "folds.csv")


def test_score_of_a_submission_compares_with_the_training_prior(study):
    folder, labels, _, mean = study
    as_submission(mean).to_csv(folder / "submission.csv", index=False)
    draw_labels(80, seed=3).to_csv(folder / "train.csv", index=False)
    report = run(folder, "--submission", "submission.csv", "--prior-labels", "train.csv")
    assert report["score"] == pytest.approx(score(labels, mean).score)
    assert report["prior"]["score"] > report["score"]
    assert report["difference"]["high"] < 0


def test_score_separates_patients_of_one_and_several_series(study, capsys):
    folder, labels, _, mean = study
    groups = run(folder, "--oof", "oof_series.csv")["series"]
    several = labels.patient_id.iloc[::2]
    chosen = [frame[frame.patient_id.isin(several)] for frame in (labels, mean)]
    assert groups["several"]["score"] == pytest.approx(score(*chosen).score)
    assert (groups["one"]["patients"], groups["several"]["patients"]) == (20, 20)
    assert "Patients by their series" in capsys.readouterr().out
    assert run(folder, "--oof", "oof.csv")["series"] == {}


def test_score_compares_every_table_with_the_first(study):
    folder, labels, folds, mean = study
    other = draw_predictions(labels, seed=9, skill=2.0).merge(folds)
    other.to_csv(folder / "other.csv", index=False)
    first, second = run(folder, "--oof", "oof.csv", "other.csv")["tables"]
    assert first["score"] == pytest.approx(score(labels, mean).score) and "difference" not in first
    assert second["name"].endswith("other.csv")
    observed = score(labels, other).score - score(labels, mean).score
    assert second["difference"]["observed"] == pytest.approx(observed)
    assert second["difference"]["low"] < observed < second["difference"]["high"]


def test_score_drops_folds_that_differ_between_tables(study, capsys):
    folder, _, _, mean = study
    mean.assign(fold=3 - mean.fold).to_csv(folder / "other_folds.csv", index=False)
    report = run(folder, "--oof", "oof.csv", "other_folds.csv")
    assert report["folds"] == [] and len(report["tables"]) == 2
    assert "their folds are left aside" in capsys.readouterr().out


@pytest.mark.parametrize("with_folds", [True, False])
def test_score_fit_reports_raw_and_cross_fitted_scores(tmp_path, capsys, with_folds):
    labels = draw_labels(300)
    labels.to_csv(tmp_path / "labels.csv", index=False)
    for name, seed in (("a.csv", 1), ("b.csv", 2)):
        table = draw_predictions(labels, seed, skill=3.0)
        table = table.assign(fold=np.arange(300) % 3) if with_folds else table
        pd.concat([table, table.iloc[::2]]).to_csv(tmp_path / name, index=False)
    post = tmp_path / "new" / "post.json"
    report = run(tmp_path, "--oof", "a.csv", "b.csv", "--fit", str(post))
    assert set(report["losses"]) == set(report["fitted_losses"])
    assert np.mean(list(report["fitted_losses"].values())) == pytest.approx(report["fitted_score"])
    change = report["fitted_score"] - report["score"]
    assert change < 0 and report["fitted_difference"]["observed"] == pytest.approx(change)
    assert len(report["post"]["by_fold"]) == (3 if with_folds else 5)
    assert read_post(post).any_injury == report["post"]["any_injury"]
    assert "Post-processing, every fold by a fit to the others" in capsys.readouterr().out


def test_score_fit_with_too_few_positives_leaves_no_file(study):
    folder, *_ = study
    with pytest.raises(UserError, match="too few positives to fit on"):
        run(folder, "--oof", "oof.csv", "--fit", str(folder / "post.json"))
    assert not (folder / "post.json").exists()


def test_score_draws_plots(study):
    folder, *_ = study
    run(folder, "--oof", "oof.csv", "--plots", str(folder / "plots"), "--rounds", "10")
    names = {path.stem for path in (folder / "plots").glob("*.png")}
    assert names == {"roc", "precision_recall", "calibration", "confusion"}


def edit(folder: Path, name: str, change) -> None:
    change(pd.read_csv(folder / name)).to_csv(folder / name, index=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("oof.csv", "lack 1 of 40 labelled patients, the first is 100.*--folds"),
        ("labels.csv", "labels lack 1 of 40 predicted patients, the first is 100"),
    ],
)
def test_score_refuses_tables_of_other_patients(study, name, message):
    folder, *_ = study
    edit(folder, name, lambda frame: frame.iloc[1:])
    with pytest.raises(UserError, match=message):
        run(folder, "--oof", "oof.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.iloc[1:], "no fold for 1 of 40 patients, the first is 100"),
        (
            lambda frame: frame.assign(fold=frame.fold.replace({0: 1, 1: 0})),
            "patient 100 was predicted in fold 0 but 1",
        ),
    ],
)
def test_score_refuses_folds_that_do_not_fit(study, change, message):
    folder, *_ = study
    edit(folder, "folds.csv", change)
    with pytest.raises(UserError, match=message):
        run(folder, "--oof", "oof.csv", "--folds", "folds.csv")


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--oof oof.csv --submission oof.csv",
        "--submission oof.csv --folds folds.csv",
        "--oof oof.csv --prior-labels labels.csv",
        "--oof oof.csv oof.csv",
        "--oof oof.csv --level 1.5",
        "--submission oof.csv --fit post.json",
        "--oof oof.csv --fit labels.csv/post.json",
    ],
)
def test_score_refuses_wrong_options(study, monkeypatch, arguments):
    monkeypatch.chdir(study[0])
    with pytest.raises(UserError):
        score_script.main(["--labels", "labels.csv", *arguments.split()])
