"""score.py on tables of few targets and of patients without series: joined and fitted as infer.py joins."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import score as score_script
from src.core.errors import UserError
from src.core.targets import COLUMNS, TARGETS
from src.score.metric import score
from src.score.postprocess import PatientRows, read_post
from src.score.prior import cross_fitted_prior, weight_aware_prior
from tests.helpers.score_frames import draw_labels, draw_predictions

LIVER = list(TARGETS["liver"])
OTHERS = [column for column in COLUMNS if column not in LIVER]


@pytest.fixture
def study(tmp_path):
    """Labels, folds, and tables `all.csv`, `liver.csv` and `others.csv` with two series for half of them."""
    labels = draw_labels(300)
    folds = pd.DataFrame({"patient_id": labels.patient_id, "fold": np.arange(300) % 3})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    folds.to_csv(tmp_path / "folds.csv", index=False)
    for seed, (name, missing) in enumerate((("all", []), ("liver", OTHERS), ("others", LIVER))):
        series = [
            draw_predictions(labels, 2 * seed + own, skill=3.0).merge(folds).assign(series_id=str(own))
            for own in (0, 1)
        ]
        table = pd.concat([series[0], series[1].iloc[::2]]).assign(**dict.fromkeys(missing, np.nan))
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path, labels, folds


def run(folder: Path, tables: str, *more: str) -> dict:
    """The JSON of one run on these tables."""
    paths = [str(folder / f"{name}.csv") for name in tables.split()]
    given = ["--oof", *paths, "--labels", f"{folder}/labels.csv", "--json", f"{folder}/out.json"]
    score_script.main([*given, "--rounds", "20", *more])
    return json.loads((folder / "out.json").read_text())


def read(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv", dtype={"patient_id": str})


def test_score_fills_missing_targets_of_a_table_alone_with_the_prior(study, capsys):
    folder, labels, folds = study
    report = run(folder, "all liver")
    prior = cross_fitted_prior(labels, folds, weight_aware_prior).set_index("patient_id")
    liver = read(folder, "liver").groupby("patient_id")[list(COLUMNS)].mean().reset_index()
    alone = liver.assign(**prior.loc[liver.patient_id, OTHERS].reset_index(drop=True))
    assert report["tables"][1]["losses"] == pytest.approx(score(labels, alone).losses)
    assert report["missing_targets"] == []
    assert "liver.csv has no bowel, extravasation, kidney, spleen: they come" in capsys.readouterr().out


def test_score_fills_targets_that_all_tables_lack_and_says_so(study, capsys):
    folder, labels, folds = study
    report = run(folder, "liver")
    prior = cross_fitted_prior(labels, folds, weight_aware_prior)
    assert report["losses"]["kidney"] == pytest.approx(score(labels, prior).losses["kidney"])
    assert report["losses"]["liver"] < score(labels, prior).losses["liver"]
    assert report["missing_targets"] == ["bowel", "extravasation", "kidney", "spleen"]
    assert "no table has bowel, extravasation, kidney, spleen: the prior" in capsys.readouterr().out


def test_score_needs_folds_to_fill_missing_targets(study):
    folder, *_ = study
    read(folder, "liver").drop(columns="fold").to_csv(folder / "bare.csv", index=False)
    with pytest.raises(UserError, match=r"no table predicts bowel, .* needs folds: give --folds"):
        run(folder, "bare")
    assert run(folder, "bare", "--folds", f"{folder}/folds.csv")["missing_targets"]


@pytest.mark.parametrize("tables", ["all liver", "liver others", "liver"])
def test_fit_adjusts_what_is_scored(study, tables):
    folder, labels, folds = study
    post = folder / "post.json"
    report = run(folder, tables, "--fit", str(post))
    about = json.loads(post.read_text())["about"]
    assert about["raw_score"] == pytest.approx(report["score"])
    assert about["cross_fitted_score"] == pytest.approx(report["fitted_score"])
    assert report["fitted_score"] < report["score"]
    frames = [read(folder, name) for name in tables.split()]
    if tables == "liver":
        prior = cross_fitted_prior(labels, folds, weight_aware_prior).set_index("patient_id")
        frames = [
            frame.assign(**prior.loc[frame.patient_id, OTHERS].set_index(frame.index)) for frame in frames
        ]
    fitted = PatientRows.read(frames, labels.patient_id).apply(read_post(post))
    assert score(labels, fitted).score < report["score"]


@pytest.mark.slow
def test_fit_leaves_the_prior_of_a_patient_without_series(study):
    folder, labels, folds = study
    prior = cross_fitted_prior(labels, folds, weight_aware_prior)
    for name in ("all", "liver"):
        table = read(folder, name)
        is_lost = table.patient_id == "107"
        row = prior[prior.patient_id == "107"].assign(series_id="")
        row = row.assign(**{column: np.nan for column in COLUMNS if table[column].isna().all()})
        pd.concat([table[~is_lost], row]).to_csv(folder / f"{name}.csv", index=False)
    post = folder / "post.json"
    report = run(folder, "all liver", "--fit", str(post))
    assert report["patients"] == 300
    assert json.loads(post.read_text())["about"]["patients"] == 299
    # the patient without a series takes no part in the fit: without the patient, the numbers are equal
    without = [read(folder, name).query("patient_id != '107'") for name in ("all", "liver")]
    for name, table in zip(("a", "l"), without, strict=True):
        table.to_csv(folder / f"{name}.csv", index=False)
    labels[labels.patient_id != "107"].to_csv(folder / "labels.csv", index=False)
    run(folder, "a l", "--fit", str(folder / "others.json"))
    numbers = [json.loads(path.read_text()) for path in (post, folder / "others.json")]
    for key in ("weights", "series_max", "any_injury", "temperature", "multipliers"):
        assert numbers[0][key] == pytest.approx(numbers[1][key])
