"""60 patients, 20 of them broken in 20 ways, and runs that are interrupted: every one leaves a valid file."""

import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from src.cls.model import TraumaClassifier
from src.infer import results, stack_sources
from src.infer.predictor import SeriesPredictor
from src.infer.results import check_submission
from src.phantom import __main__ as phantom
from tests.helpers.broken_patients import BROKEN, CRASH, HANG
from tests.helpers.dying_readers import Misbehave
from tests.helpers.infer_runs import read_report, read_submission, submit, train_small

pytestmark = pytest.mark.slow
READABLE = {"one slice"}
"""Of the broken ones: something of them is left to look at."""


@pytest.fixture(scope="module")
def chaos(tiny, tmp_path_factory) -> SimpleNamespace:
    """`raw` with broken patients, `broken` (way by patient), `run`, and the `clean` predictions."""
    folder = tmp_path_factory.mktemp("chaos")
    size = "--patients 1 --test-patients 60 --matrix 64 --spacing-z-mm 18"
    phantom.main(f"--output {folder}/raw --seed 5 --jobs 2 {size}".split())
    run, sample = train_small(tiny, folder / "run"), folder / "raw" / "sample_submission.csv"
    clean = submit(folder / "raw", run, sample, folder / "clean")
    patients = sorted((folder / "raw" / "test_images").iterdir())[::3]
    broken = dict(zip((path.name for path in patients), BROKEN, strict=True))
    names = {way: frozenset(_series(path)) for path, way in zip(patients, BROKEN, strict=True)}
    for path, way in zip(patients, BROKEN, strict=True):
        BROKEN[way](path)
    return SimpleNamespace(
        raw=folder / "raw", sample=sample, run=run, clean=clean, broken=broken, names=names
    )


def _series(patient: Path) -> list[str]:
    return [path.name for path in patient.iterdir()]


@pytest.fixture(autouse=True)
def misbehaving(chaos, monkeypatch):
    """Both crash: a hang is waited for, so it is left to the one test that is about it."""
    monkeypatch.setattr(stack_sources, "load_stack", Misbehave(crash=chaos.names[CRASH] | chaos.names[HANG]))


def infer_chaos(chaos: SimpleNamespace, folder: Path, *more: object) -> tuple[pd.DataFrame, pd.DataFrame]:
    submission = submit(chaos.raw, chaos.run, chaos.sample, folder, *more)
    return submission, read_report(folder)


def assert_as_clean(chaos: SimpleNamespace, submission: pd.DataFrame, report: pd.DataFrame) -> int:
    """Rows of healthy patients whose series were all predicted are those of the clean run; their number."""
    unfinished = set(report[report.status != "ok"].patient_id) | set(chaos.broken)
    finished = [patient for patient in submission.index if patient not in unfinished]
    np.testing.assert_allclose(submission.loc[finished], chaos.clean.loc[finished], rtol=0, atol=1e-6)
    return len(finished)


def test_infer_writes_a_row_for_broken_patients_and_predicts_the_others(chaos, tmp_path, monkeypatch):
    reader = Misbehave(crash=chaos.names[CRASH], hang=chaos.names[HANG])
    monkeypatch.setattr(stack_sources, "load_stack", reader)
    monkeypatch.setattr(stack_sources, "SILENCE_LIMIT_S", 10.0)
    submission, report = infer_chaos(chaos, tmp_path)
    assert check_submission(tmp_path / "submission.csv", chaos.sample) == 60
    assert assert_as_clean(chaos, submission, report) == 40
    for patient, way in chaos.broken.items():
        rows = report[report.patient_id == patient]
        if way in READABLE:
            assert set(rows.status) == {"ok"}, way
            continue
        assert "prior" in set(rows.status) and rows.reason.ne("").all(), way
    prior = submission.loc[report[report.status == "prior"].patient_id]
    assert len(prior) == 20 - len(READABLE) and (prior == prior.iloc[0]).all(axis=None)
    reasons = report.set_index("patient_id").reason
    by_way = {way: patient for patient, way in chaos.broken.items()}
    assert "crashes" in reasons.loc[[by_way[CRASH]]].iloc[0]
    assert "hangs" in reasons.loc[[by_way[HANG]]].iloc[0]


def test_infer_uses_the_other_series_where_one_is_broken(chaos, tmp_path):
    counts = pd.Series(
        {path.name: len(list(path.iterdir())) for path in (chaos.raw / "test_images").iterdir()}
    )
    patient = counts[(counts == 2) & ~counts.index.isin(list(chaos.broken))].index[0]
    raw = tmp_path / "raw" / "test_images"
    shutil.copytree(chaos.raw / "test_images" / patient, raw / patient)
    sample = pd.read_csv(chaos.sample, dtype=str)
    sample[sample.patient_id == patient].to_csv(tmp_path / "sample.csv", index=False)
    submit(raw.parent, chaos.run, tmp_path / "sample.csv", tmp_path / "both")
    first = sorted((raw / patient).iterdir())[0]
    shutil.rmtree(first)
    alone = submit(raw.parent, chaos.run, tmp_path / "sample.csv", tmp_path / "alone")
    first.mkdir()
    (first / "1.dcm").write_bytes(b"broken")
    other = submit(raw.parent, chaos.run, tmp_path / "sample.csv", tmp_path / "other")
    pd.testing.assert_frame_equal(other, alone)
    assert not other.equals(read_submission(tmp_path / "both"))
    assert sorted(read_report(tmp_path / "other").status) == ["ok", "skipped"]


def test_infer_keeps_finished_series_after_sigterm(chaos, tmp_path, monkeypatch):
    predict, seen = SeriesPredictor.predict, []

    def terminated(self, series, subset, check):
        prediction = predict(self, series, subset, check)
        seen.append(series)
        if len(seen) == 30:
            os.kill(os.getpid(), signal.SIGTERM)
        return prediction

    monkeypatch.setattr(SeriesPredictor, "predict", terminated)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        infer_chaos(chaos, tmp_path)
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert check_submission(tmp_path / "submission.csv", chaos.sample) == 60
    submission, report = read_submission(tmp_path), read_report(tmp_path)
    assert (report.status == "ok").sum() == len(seen) == 30
    assert "not reached" in set(report.status)
    assert 0 < assert_as_clean(chaos, submission, report) < 40


def test_infer_skips_a_series_too_large_for_the_memory(chaos, tmp_path, monkeypatch):
    forward, calls = TraumaClassifier.forward, []

    def short_for_a_while(self, *parts, **more):
        calls.append(1)
        if len(calls) <= 3:  # all slices, two, one
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *parts, **more)

    monkeypatch.setattr(TraumaClassifier, "forward", short_for_a_while)
    submission, report = infer_chaos(chaos, tmp_path)
    assert check_submission(tmp_path / "submission.csv", chaos.sample) == 60
    assert report.reason.str.contains("OutOfMemoryError").sum() == 1
    assert assert_as_clean(chaos, submission, report) >= 39


def test_infer_saves_a_valid_submission_at_any_time(chaos, tmp_path, monkeypatch):
    class Killed(BaseException):
        """Nothing that a series may raise."""

    predict, seen = SeriesPredictor.predict, []

    def killed(self, series, subset, check):
        seen.append(series)
        if len(seen) == 5:
            raise Killed
        return predict(self, series, subset, check)

    monkeypatch.setattr(SeriesPredictor, "predict", killed)
    written, saved = results.write_submission, []

    def noted(predictions, sample, path):
        written(predictions, sample, path)
        assert check_submission(path, chaos.sample) == 60
        saved.append(read_submission(tmp_path))

    monkeypatch.setattr(results, "write_submission", noted)
    monkeypatch.setattr("src.infer.pipeline.SAVE_EVERY_S", 0.0)
    with pytest.raises(Killed):
        infer_chaos(chaos, tmp_path)
    assert (saved[0] == saved[0].iloc[0]).all(axis=None)  # before the first series
    known = [int((table != saved[0]).any(axis=1).sum()) for table in saved]
    assert known == sorted(known) and set(known) == {0, 1, 2, 3, 4}


def test_infer_writes_the_prior_when_time_is_spent_at_the_start(chaos, tmp_path, capsys):
    submission, report = infer_chaos(chaos, tmp_path, "--max-hours", 1e-9)
    assert check_submission(tmp_path / "submission.csv", chaos.sample) == 60
    assert (submission == submission.iloc[0]).all(axis=None)
    assert set(report.status) == {"not reached", "prior"}
    assert "--max-hours is spent" in capsys.readouterr().err
