"""The order of the series, and faults of the machine, after which a series is read again."""

import shutil
import threading
from types import SimpleNamespace

import pandas as pd
import pytest

from src.infer import read_ahead, stack_sources
from src.infer.pipeline import order_series
from src.infer.predictor import SeriesPredictor
from tests.helpers.dying_readers import AwayAtFirst
from tests.helpers.infer_runs import read_report, submit


def test_order_series_begins_with_the_first_series_of_every_patient():
    series = {"b": ["3"], "a": ["1", "2"], "c": []}
    source = SimpleNamespace(series_of=series.get)
    assert order_series(source, ["b", "c", "a"]) == [("b", "3"), ("a", "1"), ("a", "2")]


@pytest.mark.parametrize(("times", "status"), [(2, "ok"), (3, "skipped")])
def test_infer_reads_a_series_again_whose_disk_is_away(tiny, tiny_run, tmp_path, monkeypatch, times, status):
    series_id = sorted((tiny.raw / "test_images").glob("*/*"))[0].name
    monkeypatch.setattr(read_ahead, "PAUSE_S", 0.0)
    monkeypatch.setattr(stack_sources, "load_stack", AwayAtFirst(series_id, tmp_path / "calls", times))
    submit(tiny.raw, tiny_run, tiny.sample, tmp_path)
    report = read_report(tmp_path).set_index("series_id")
    assert (tmp_path / "calls").stat().st_size == 3
    assert report.loc[series_id, "status"] == status
    assert set(report.drop([series_id, *report.index[report.status == "prior"]]).status) == {"ok"}


def test_infer_does_not_read_a_damaged_series_again(tiny, tiny_run, tmp_path, monkeypatch):
    raw = shutil.copytree(tiny.raw, tmp_path / "raw")
    series = sorted((raw / "test_images").glob("*/*"))[0]
    for file in series.iterdir():
        file.write_bytes(b"")
    monkeypatch.setattr(read_ahead, "PAUSE_S", 0.0)
    monkeypatch.setattr(stack_sources, "load_stack", AwayAtFirst(series.name, tmp_path / "calls", 0))
    submit(raw, tiny_run, tiny.sample, tmp_path)
    assert (tmp_path / "calls").stat().st_size == 1


@pytest.fixture
def two_devices(monkeypatch):
    """Two predictors that must work at the same time: each waits for the other at its first series."""
    together, predict, seen = threading.Barrier(2, timeout=60), SeriesPredictor.predict, set()

    def waiting(self, series, subset, check=lambda: None):
        if id(self) not in seen:
            seen.add(id(self))
            together.wait()
        return predict(self, series, subset, check)

    monkeypatch.setattr(SeriesPredictor, "predict", waiting)
    monkeypatch.setattr(
        SeriesPredictor, "on_all_gpus", lambda ensemble, precision: [SeriesPredictor(ensemble) for _ in "ab"]
    )
    return seen


def test_infer_on_two_devices_gives_the_submission_of_one(tiny, tiny_run, tmp_path, two_devices, monkeypatch):
    both = submit(tiny.raw, tiny_run, tiny.sample, tmp_path / "both")
    assert len(two_devices) == 2
    monkeypatch.undo()
    pd.testing.assert_frame_equal(both, submit(tiny.raw, tiny_run, tiny.sample, tmp_path / "one"))
    reports = [read_report(tmp_path / name) for name in ("both", "one")]
    pd.testing.assert_frame_equal(*reports)


def test_infer_on_two_devices_skips_what_fails_on_one(tiny, tiny_run, tmp_path, two_devices, monkeypatch):
    failing = sorted((tiny.raw / "test_images").glob("*/*"))[0].name
    predict = SeriesPredictor.predict

    def fail(self, series, subset, check=lambda: None):
        result = predict(self, series, subset, check)
        if series.key[1] == failing:
            raise ValueError("a fault")
        return result

    monkeypatch.setattr(SeriesPredictor, "predict", fail)
    submit(tiny.raw, tiny_run, tiny.sample, tmp_path)
    report = read_report(tmp_path).set_index("series_id")
    assert report.loc[failing, "status"] == "skipped" and "a fault" in report.loc[failing, "reason"]
    assert "ok" in set(report.status)
