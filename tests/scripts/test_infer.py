"""infer.py on a tiny phantom: a valid row for every patient, whatever its files are."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import infer
import prepare_data
import score
from src.core.errors import UserError
from src.core.targets import COLUMNS, TARGETS
from src.ct.series import Remark
from src.infer import stack_sources
from src.score.postprocess import PostProcessing, write_post
from tests.helpers.doubtful_sets import REASON, LoadWithRemarks, mark_doubtful, series_of
from tests.helpers.dying_readers import DieOn
from tests.helpers.infer_runs import read_report, read_text, submit, train_small

ROOT = Path(__file__).resolve().parents[2]
CHAOS = ROOT.parent / "shared" / "data" / "ct" / "chaos" / "dicom"


def prepare(raw: Path, folder: Path, more: str = "") -> Path:
    given = f"--input {raw} --output {folder} --size 48 --jobs 1"
    prepare_data.main([*given.split(), *more.split()])
    return folder


@pytest.fixture
def damaged(tiny, tmp_path) -> Path:
    """The phantom's test set with a file damaged in one series, and one patient's files all unreadable."""
    raw = tmp_path / "damaged"
    shutil.copytree(tiny.raw / "test_images", raw / "test_images")
    patients = sorted((raw / "test_images").iterdir())
    one_file = next(patients[0].glob("*/*.dcm"))
    one_file.write_bytes(one_file.read_bytes()[:200])
    for path in patients[1].glob("*/*.dcm"):
        path.write_bytes(b"not DICOM")
    shutil.rmtree(patients[2])
    return raw


def test_infer_writes_a_valid_submission_in_the_order_of_the_sample(tiny, tiny_run, tmp_path):
    sample = read_text(tiny.sample).iloc[::-1]
    sample.to_csv(tmp_path / "sample.csv", index=False)
    submit(tiny.raw, tiny_run, tmp_path / "sample.csv", tmp_path)
    submission = read_text(tmp_path / "submission.csv")
    assert list(submission) == ["patient_id", *COLUMNS]
    assert list(submission.patient_id) == list(sample.patient_id)
    for columns in TARGETS.values():
        np.testing.assert_allclose(submission[list(columns)].astype(float).sum(axis=1), 1, atol=1e-6)
    assert set(read_report(tmp_path).status) == {"ok"}
    score.main(f"--submission {tmp_path}/submission.csv --labels {tiny.raw}/test_labels.csv".split())


def test_infer_predicts_the_same_from_raw_and_from_prepared_images(tiny, tiny_run, tmp_path):
    prepared = prepare(tiny.raw, tmp_path / "prepared", "--split test")
    raw = submit(tiny.raw, tiny_run, tiny.sample, tmp_path / "raw")
    same = submit(prepared, tiny_run, tiny.sample, tmp_path / "same")
    np.testing.assert_allclose(same, raw, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["--spacing-z-mm 40", "--count 6"])
@pytest.mark.parametrize("view", ["--neighbours 3", "--spacing-mm 30"])
def test_infer_selects_slices_as_for_training(tiny, tmp_path, selection, view):
    """What was prepared with fewer slices, and with them the neighbours that a network was shown."""
    few = SimpleNamespace(**{**vars(tiny), "prepared": prepare(tiny.raw, tmp_path / "train", selection)})
    prepared = prepare(tiny.raw, tmp_path / "test", f"--split test {selection}")
    run = train_small(few, tmp_path / "run", f"{view} --fold 0")
    raw = submit(tiny.raw, run, tiny.sample, tmp_path / "raw")
    same = submit(prepared, run, tiny.sample, tmp_path / "same")
    np.testing.assert_allclose(same, raw, atol=1e-6)
    with pytest.raises(UserError, match="prepare it with the same --spacing-z-mm or --count"):
        submit(tiny.prepared, run, tiny.sample, tmp_path)


@pytest.mark.skipif(not CHAOS.is_dir(), reason="no real CT in ../shared/data/ct/chaos")
def test_infer_predicts_a_real_series(tiny_run, tmp_path):
    shutil.copytree(CHAOS, tmp_path / "raw" / "test_images" / "1" / "1")
    sample = pd.DataFrame({"patient_id": [1], **{column: [0.5] for column in COLUMNS}})
    sample.to_csv(tmp_path / "sample.csv", index=False)
    prepared = prepare(tmp_path / "raw", tmp_path / "prepared")
    raw = submit(tmp_path / "raw", tiny_run, tmp_path / "sample.csv", tmp_path)
    same = submit(prepared, tiny_run, tmp_path / "sample.csv", tmp_path / "same")
    assert read_report(tmp_path).status.tolist() == ["ok"]
    np.testing.assert_allclose(raw, same, atol=1e-6)


def test_infer_gives_patients_without_a_readable_series_the_prior(tiny, tiny_run, damaged, tmp_path):
    submission = submit(damaged, tiny_run, tiny.sample, tmp_path)
    report = read_report(tmp_path)
    prior = report[report.status == "prior"]
    assert len(submission) == 3 and len(set(prior.patient_id)) == 2
    assert sorted(prior.reason) == ["no series could be read or predicted", "no series found"]
    first, second = (submission.loc[patient] for patient in prior.patient_id)
    pd.testing.assert_series_equal(first, second, check_names=False)
    assert 0 < first.bowel_injury < 1
    write_post(PostProcessing((1.0,), any_injury=1.0), tmp_path / "post.json", ["run"])
    adjusted = submit(damaged, tiny_run, tiny.sample, tmp_path, "--post", tmp_path / "post.json")
    is_changed = (adjusted != submission).any(axis=1)
    assert set(submission.index[~is_changed]) == set(prior.patient_id)  # the prior stays as it is


@pytest.mark.parametrize("source", ["raw", "prepared"])
def test_infer_predicts_doubtful_series_and_repeats_the_reason(
    tiny, tiny_run, tmp_path, monkeypatch, capsys, source
):
    data = tiny.raw if source == "raw" else prepare(tiny.raw, tmp_path / "prepared", "--split test")
    plain = submit(data, tiny_run, tiny.sample, tmp_path / "plain")
    names = sorted(path.name for path in (tiny.raw / "test_images").glob("*/*"))
    if source == "raw":
        remarks = {name: (Remark("spacings differ"), Remark(REASON, doubtful=True)) for name in names[:2]}
        remarks[names[2]] = (Remark("spacings differ"),)
        reasons = pd.Series([f"spacings differ; {REASON}"] * 2 + ["spacings differ", ""], names)
        monkeypatch.setattr(stack_sources, "load_stack", LoadWithRemarks(remarks))
    else:
        mark_doubtful(data, names[:2])
        reasons = read_text(data / "series.csv").set_index("series_id").reason
    capsys.readouterr()
    doubtful = submit(data, tiny_run, tiny.sample, tmp_path / "doubtful")
    pd.testing.assert_frame_equal(doubtful, plain)
    report = read_report(tmp_path / "doubtful").set_index("series_id")
    assert report.status[names].tolist() == ["doubtful", "doubtful", "ok", "ok"] and len(report) == 4
    assert report.reason[names].tolist() == reasons[names].tolist()
    out, err = capsys.readouterr()
    assert "series: 2 doubtful, 2 ok" in out or "series: 2 ok, 2 doubtful" in out
    assert "2 series were predicted from doubtful images, see report.csv" in err


def test_infer_is_no_failure_where_all_series_are_doubtful(tiny, tiny_run, tmp_path):
    data = prepare(tiny.raw, tmp_path / "prepared", "--split test")
    mark_doubtful(data, [series for ids in series_of(data).values() for series in ids])
    submit(data, tiny_run, tiny.sample, tmp_path)
    assert set(read_report(tmp_path).status) == {"doubtful"}


def test_infer_predicts_otherwise_with_flips_and_fewer_folds(tiny, tiny_run, tmp_path):
    shutil.copytree(tiny_run / "fold0", tmp_path / "half" / "fold0")
    plain = submit(tiny.raw, tiny_run, tiny.sample, tmp_path / "plain", "--tta", "none")
    flipped = submit(tiny.raw, tiny_run, tiny.sample, tmp_path / "flipped", "--tta", "none", "h")
    one_fold = submit(tiny.raw, tmp_path / "half", tiny.sample, tmp_path / "one_fold", "--tta", "none")
    assert not plain.equals(flipped) and not plain.equals(one_fold)


def test_infer_skips_a_series_that_kills_every_reader(tiny, tiny_run, tmp_path, monkeypatch):
    broken = sorted((tiny.raw / "test_images").glob("*/*"))[0]
    monkeypatch.setattr(stack_sources, "load_stack", DieOn(broken.name))
    submit(tiny.raw, tiny_run, tiny.sample, tmp_path)
    report = read_report(tmp_path).set_index("series_id")
    assert report.loc[broken.name, "reason"] == "every decoder crashes on it"
    assert (report.status == "skipped").sum() == 1


@pytest.mark.parametrize("raw_has", ["other patients", "empty folders"])
def test_infer_writes_the_prior_and_fails_where_no_patient_has_a_series(tiny, tiny_run, tmp_path, raw_has):
    raw, sample = tiny.raw, read_text(tiny.sample)
    if raw_has == "other patients":
        sample["patient_id"] = ["7", "8", "9"]
    else:
        raw = tmp_path / "raw"
        for patient_id in sample.patient_id:
            (raw / "test_images" / patient_id).mkdir(parents=True)
    sample.to_csv(tmp_path / "sample.csv", index=False)
    with pytest.raises(UserError, match="every patient got the prior: no series found"):
        submit(raw, tiny_run, tmp_path / "sample.csv", tmp_path)
    assert len(read_text(tmp_path / "submission.csv")) == 3


def test_infer_predicts_in_fp32_instead_of_fp16_without_a_gpu(tiny, tiny_run, tmp_path, capsys):
    given = (tiny.raw, tiny_run, tiny.sample)
    half = submit(*given, tmp_path / "fp16", "--precision", "fp16")
    assert "in fp32 instead of fp16" in capsys.readouterr().err
    pd.testing.assert_frame_equal(half, submit(*given, tmp_path / "fp32", "--precision", "fp32"))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"output": "."}, "is a folder"),
        ({"input": "."}, "neither test_images/ nor a prepared data set"),
        ({"models": "nowhere"}, "no run folder"),
        ({"models": "empty"}, "no finished fold"),
        ({"sample": "nothing.csv"}, "nothing.csv"),
        ({"post": "two.json"}, "fitted on 2 tables or runs, there are 1"),
    ],
)
def test_infer_refuses_in_one_line(tiny, tiny_run, tmp_path, monkeypatch, changes, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_post(PostProcessing.identity(2), tmp_path / "two.json", ["a", "b"])
    given = {"input": tiny.raw, "models": tiny_run, "sample": tiny.sample, "output": "submission.csv"}
    with pytest.raises(UserError, match=part) as caught:
        infer.main([part for name, value in (given | changes).items() for part in (f"--{name}", str(value))])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "submission.csv").exists()


def test_infer_refuses_a_prepared_set_of_another_size(tiny, tiny_run, tmp_path):
    prepare_data.main(f"--input {tiny.raw} --split test --output {tmp_path}/p --size 40 --jobs 1".split())
    with pytest.raises(UserError, match="the models want soft organ wide at 48 px"):
        submit(tmp_path / "p", tiny_run, tiny.sample, tmp_path)
