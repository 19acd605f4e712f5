"""Time: what is left out when a run is late, in which order, and how signals end it."""

import os
import signal
import threading

import numpy as np
import pytest
from infer_runs import read_report, submit, train_small

from src.infer.budget import FIRST_SERIES, Pace, stop_on_signals
from src.infer.careful import CarefulNetworks
from src.infer.ensemble import Ensemble, Share
from src.infer.networks import Answer
from src.infer.placement import Placement
from src.infer.sources import ReadSeries
from src.score.metric import check_probabilities

SHARES = [Share((5, 5)), Share((5, 5), tta=False), Share((1, 0), tta=False)]
PASSES = [20, 10, 1]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run_pace(series, max_s, read_s, pass_s, jobs=1):
    """The share that each series got, and the time it all took."""
    clock = Clock()
    pace = Pace(series, SHARES, PASSES, max_s, jobs, clock(), clock)
    got = []
    while pace.done < series and not pace.is_over:
        level = SHARES.index(pace.share)
        predict_s = pass_s * PASSES[level]
        got.append(level)
        clock.now += max(read_s / jobs, predict_s)
        answer = Answer(np.zeros((2, 13)), 0.0, predict_s)
        pace.note(ReadSeries("1", "2", decode_s=read_s), answer, predict_s)
    return got, clock.now - 100.0


def test_with_time_enough_everything_is_done():
    got, _ = run_pace(series=100, max_s=2500, read_s=0.1, pass_s=1.0)
    assert set(got) == {0}
    assert set(run_pace(series=100, max_s=None, read_s=0.1, pass_s=1.0)[0]) == {0}


def test_a_late_run_leaves_out_just_enough():
    got, took_s = run_pace(series=100, max_s=1500, read_s=0.1, pass_s=1.0)
    assert len(got) == 100 and took_s <= 1500
    assert got[:FIRST_SERIES] == [0] * FIRST_SERIES and set(got) == {0, 1}
    assert got.count(0) > 30  # what is saved is spent: it would be 50 at best


def test_with_very_little_time_the_least_is_done():
    got, took_s = run_pace(series=100, max_s=300, read_s=0.1, pass_s=1.0)
    assert len(got) == 100 and took_s <= 300 and got.count(2) > 80


def test_where_reading_is_the_limit_nothing_is_left_out():
    got, _ = run_pace(series=100, max_s=500, read_s=25.0, pass_s=1.0)
    assert set(got) == {0}


def test_more_threads_read_faster():
    clock = Clock()
    slow, fast = (Pace(10, SHARES, PASSES, None, jobs, clock(), clock) for jobs in (1, 4))
    for pace in (slow, fast):
        pace.note(ReadSeries("1", "2", decode_s=8.0), Answer(np.zeros((2, 13)), 0.0, 1.0), 1.0)
    assert slow.series_s(0) == 8.0 and fast.series_s(0) == 2.0


def test_the_first_signal_is_noted_and_the_second_ctrl_c_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        assert stop.name == "" and stop.exit_status == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT" and stop.exit_status == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(1)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Two runs of two folds; the first looks with two flips and two offsets."""
    folder = tmp_path_factory.mktemp("runs")
    more = "--tta none h --offsets 2"
    return [train_small(tiny, folder / "a", more), train_small(tiny, folder / "b", "--seed 1")]


def test_flips_and_offsets_go_first_then_folds_then_runs(runs):
    ensemble = Ensemble(runs, Placement.on_cpu())
    assert ensemble.shares((0.25, 0.75)) == [
        Share((2, 2)),
        Share((2, 2), tta=False),
        Share((1, 2), tta=False),
        Share((1, 1), tta=False),
        Share((0, 1), tta=False),
    ]
    assert [ensemble.count_passes(share) for share in ensemble.shares((0.25, 0.75))] == [10, 4, 3, 2, 1]
    assert ensemble.shares((0.75, 0.25))[-1] == Share((1, 0), tta=False)


def test_a_late_run_says_what_it_left_out(tiny, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("src.infer.budget.FIRST_SERIES", 1)
    now = Clock()
    predict = CarefulNetworks.predict

    def slowly(self, series, share):
        now.now += 400.0 * self.networks.ensemble.count_passes(share)
        return predict(self, series, share)

    monkeypatch.setattr(CarefulNetworks, "predict", slowly)
    monkeypatch.setattr("src.infer.budget.time.monotonic", now)
    monkeypatch.setattr("src.infer.pipeline.time.perf_counter", now)
    monkeypatch.setattr("infer.time.monotonic", now)
    submission = submit(tiny.raw, runs, tiny.sample, tmp_path, "--max-hours", "2")
    report = read_report(tmp_path)
    check_probabilities(submission.reset_index())
    assert "thinned" in set(report.status) and "ok" in set(report.status)
    assert report[report.status == "thinned"].reason.str.contains("of 10 forward passes").all()
    assert "late: from now on" in capsys.readouterr().out
