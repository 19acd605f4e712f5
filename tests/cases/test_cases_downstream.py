"""Reported cases of words at the end of the line: in the report of infer.py, and in the text of score.py."""

import json
import shutil

import numpy as np

import score
from tests.helpers.dicom_files import write_series
from tests.helpers.infer_runs import read_report, submit
from tests.helpers.prepare_runs import prepare_input
from tests.helpers.score_frames import draw_labels, draw_predictions


def test_case_33_report_says_why_no_slice_can_be_decoded(tiny, tiny_run, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(tiny.raw / "test_images", raw / "test_images")
    patient, series = sorted((raw / "test_images").glob("*/*"))[0].parts[-2:]
    shutil.rmtree(raw / "test_images" / patient)
    folder = write_series(raw / "test_images" / patient / series, n_slices=6, rle=True)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:1200])
    submit(raw, tiny_run, tiny.sample, tmp_path)
    row = read_report(tmp_path).set_index("series_id").loc[series]
    assert row.status == "skipped"
    cause = row.reason.removeprefix("no slice can be decoded: ")
    assert cause and cause != row.reason
    table = prepare_input(raw, tmp_path / "prepared", "--split", "test").all_series.set_index("series_id")
    assert table.reason[series] == row.reason  # as preparation says


def fit(folder, *more):
    """Fit the post-processing to 300 patients: what post.json records about it; the text is on stdout."""
    labels = draw_labels(300)
    labels.to_csv(folder / "labels.csv", index=False)
    draw_predictions(labels, seed=1, skill=3.0).to_csv(folder / "oof.csv", index=False)
    folds = labels[["patient_id"]].assign(fold=np.arange(300) % 3)
    folds.to_csv(folder / "folds.csv", index=False)
    names = {"oof": "oof.csv", "labels": "labels.csv", "fit": "post.json"}
    given = [part for name, value in names.items() for part in (f"--{name}", f"{folder}/{value}")]
    score.main([*given, "--rounds", "20", *map(str, more)])
    return json.loads((folder / "post.json").read_text())["about"]


def test_case_33_score_says_that_the_folds_of_a_fit_are_seeded(tmp_path, capsys):
    assert fit(tmp_path)["folds"] == "by seed"
    text = capsys.readouterr().out
    assert "no folds are known (give --folds)" in text and "--fit makes folds of its own from a seed" in text
    assert "every fold by a fit to the others (5 folds made from a seed; --folds gives those" in text
    assert fit(tmp_path, "--folds", tmp_path / "folds.csv")["folds"] == "as given"
    text = capsys.readouterr().out
    assert "every fold by a fit to the others\n" in text and "seed" not in text
