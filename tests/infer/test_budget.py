"""Time: what a late run omits, and how signals and GPUs that never answer end it."""

import itertools
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from src.cls.model import TraumaClassifier
from src.ct.series import Remark
from src.infer import stack_sources
from src.infer.budget import FIRST_SERIES, TimeBudget, stop_on_signals
from src.infer.ensemble import EnsembleSubset, Prediction
from src.infer.predictor import SeriesPredictor
from src.infer.results import check_submission
from src.score.metric import check_probabilities
from tests.helpers.doubtful_sets import LoadWithRemarks
from tests.helpers.infer_runs import read_report, submit

ROOT = Path(__file__).resolve().parents[2]
FULL = EnsembleSubset((5, 5), tta=True, passes=(10, 10), needs_organs=True)
REDUCED = EnsembleSubset((1, 0), tta=False, passes=(1, 0), needs_organs=False)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Machine:
    """Seconds that a series takes."""

    read_s, organs_s = 0.1, 0.0
    pass_s = (1.0, 1.0)
    """of each run"""

    def run(self, series, max_s, side_by_side=True):
        """The subset that each series got, and the seconds of all."""
        clock = Clock()
        budget = TimeBudget(
            series, (FULL, REDUCED), max_s, started=clock(), side_by_side=side_by_side, clock=clock
        )
        got = []
        while budget.done < series and budget.left_s > 0:
            subset = budget.subset
            organs_s = self.organs_s * subset.needs_organs
            runs_s = tuple(passes * each for passes, each in zip(subset.passes, self.pass_s, strict=True))
            predict_s = organs_s + sum(runs_s)
            clock.now += max(self.read_s, predict_s) if side_by_side else self.read_s + predict_s
            got.append(subset)
            self.after(len(got))
            budget.note(self.read_s, Prediction(np.zeros((2, 13)), organs_s, runs_s), subset)
        return got, clock() - 100.0

    def after(self, series):
        """What changes once that many are done."""


@pytest.mark.parametrize("max_s", [2500, math.inf])
def test_budget_with_enough_time_omits_nothing(max_s):
    assert set(Machine().run(100, max_s)[0]) == {FULL}


def test_budget_omits_just_enough_of_a_late_run():
    got, took_s = Machine().run(100, max_s=1500)
    assert len(got) == 100 and took_s <= 1500
    assert got[:FIRST_SERIES] == [FULL] * FIRST_SERIES
    assert got.count(FULL) > 50  # 73 at best
    assert sum(now != before for now, before in itertools.pairwise(got)) < 30


def test_budget_with_very_little_time_reduces_nearly_all():
    got, took_s = Machine().run(100, max_s=300)
    assert len(got) == 100 and took_s <= 300 and got.count(REDUCED) > 80


def test_budget_omits_nothing_where_reading_takes_longer():
    machine = Machine()
    machine.read_s = 25.0
    assert set(machine.run(100, max_s=500)[0]) == {FULL}
    assert REDUCED in machine.run(100, max_s=2600, side_by_side=False)[0]


def test_budget_ignores_the_time_of_a_series_that_hangs():
    clock = Clock()
    budget = TimeBudget(200, (FULL, REDUCED), 1e4, started=clock(), side_by_side=False, clock=clock)
    for number in range(100):
        hangs = number == 50
        clock.now += 330.0 if hangs else 20.1
        prediction = Prediction(np.zeros((2, 13)), 0.0, (10.0, 10.0))
        budget.note(*(None, None) if hangs else (0.1, prediction), budget.subset)
        assert budget.subset == FULL


def test_budget_shares_the_series_among_devices():
    """What is late for one device is in time for two."""
    chosen = []
    for devices in (1, 2):
        clock = Clock()
        given = {"started": clock(), "clock": clock, "devices": devices}
        budget = TimeBudget(100, (FULL, REDUCED), 1500.0, **given)
        for _ in range(20):
            clock.now += 20 / devices
            budget.note(0.1, Prediction(np.zeros((2, 13)), 0.0, (10.0, 10.0)), FULL)
        chosen.append(budget.subset)
    assert chosen == [REDUCED, FULL]


def test_budget_counts_the_time_of_finding_organs():
    machine = Machine()
    machine.organs_s, machine.pass_s = 100.0, (0.1, 0.1)
    got, took_s = machine.run(100, max_s=3000)
    assert len(got) == 100 and took_s <= 3000 and got.count(REDUCED) > 60


def test_budget_measures_each_run_alone():
    machine = Machine()
    machine.pass_s = (0.01, 10.0)  # the one that stays is cheap
    got, took_s = machine.run(100, max_s=1200)
    assert len(got) == 100 and took_s <= 1200


def test_budget_notices_a_change_of_pace():
    machine = Machine()

    def gpu_fails(series):
        if series == 200:
            machine.pass_s = (30.0, 30.0)

    machine.after = gpu_fails
    got, _ = machine.run(300, max_s=12000)
    assert len(got) > 280  # with a mean over all series two thirds of them would not be reached


@pytest.fixture
def heeded():
    """Ctrl-C works, which a job in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_stop_on_signals_notes_the_first_and_a_second_ctrl_c_interrupts(heeded):
    with stop_on_signals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_stop_on_signals_leaves_ignored_signals_ignored():
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_last_resort_ends_a_run_that_does_not_answer():
    """In a process of its own: it ends at once, whatever its main thread does."""
    code = """
        import time
        from src.infer.budget import last_resort

        with last_resort(0.2, lambda: print("saved", flush=True)):
            time.sleep(60)
    """
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert finished.returncode == 0 and finished.stdout == "saved\n" and "stuck" in finished.stderr


@pytest.fixture(scope="module")
def runs(tta_run, tiny_run):
    return [tta_run, tiny_run]


@pytest.fixture
def late_after_one(monkeypatch):
    """From the second series on there is no time for all forward passes."""
    monkeypatch.setattr("src.infer.budget.FIRST_SERIES", 1)
    predict = SeriesPredictor.predict

    def slowly(*given):
        return predict(*given)._replace(runs_s=(4e4, 4e4))

    monkeypatch.setattr(SeriesPredictor, "predict", slowly)


@pytest.mark.usefixtures("late_after_one")
def test_infer_says_what_a_late_run_omits(tiny, runs, tmp_path, capsys):
    submission = submit(tiny.raw, runs, tiny.sample, tmp_path, "--max-hours", 9)
    report = read_report(tmp_path)
    check_probabilities(submission.reset_index())
    assert set(report.status) == {"ok", "thinned"}
    assert set(report[report.status == "thinned"].reason) == {"2 of 10 forward passes"}
    assert "late: from now on 2 of 10 forward passes" in capsys.readouterr().out


@pytest.mark.usefixtures("late_after_one")
def test_infer_says_of_a_doubtful_series_that_it_is_thinned(tiny, runs, tmp_path, monkeypatch):
    names = sorted(path.name for path in (tiny.raw / "test_images").glob("*/*"))
    remarks = {name: (Remark("slope 32 HU", doubtful=True),) for name in names}
    monkeypatch.setattr(stack_sources, "load_stack", LoadWithRemarks(remarks))
    submit(tiny.raw, runs, tiny.sample, tmp_path, "--max-hours", 9)
    report = read_report(tmp_path)
    assert set(report.status) == {"doubtful"}
    assert sorted(set(report.reason)) == ["slope 32 HU", "slope 32 HU; 2 of 10 forward passes"]


def test_infer_ends_in_the_middle_of_a_series_when_time_is_over(tiny, runs, tmp_path, monkeypatch):
    """Between the forward passes of a series of ten."""
    now, forward, passes = [0.0], TraumaClassifier.forward, []

    def slow(self, *parts, **more):
        now[0] += 1000.0
        passes.append(now[0])
        return forward(self, *parts, **more)

    monkeypatch.setattr(TraumaClassifier, "forward", slow)
    monkeypatch.setattr(TimeBudget, "left_s", property(lambda budget: 3600.0 - now[0]))
    submit(tiny.raw, runs, tiny.sample, tmp_path, "--max-hours", 1)
    assert len(passes) == 4
    assert set(read_report(tmp_path).status) == {"not reached", "prior"}


@pytest.mark.slow
def test_infer_ends_where_a_gpu_never_answers_at_the_start(tiny, tiny_run, tmp_path):
    code = """
        import sys, time
        import infer
        from src.infer import pipeline

        pipeline.SeriesPredictor.use_fastest = lambda predictor, *_: time.sleep(60)
        pipeline.GRACE_S = 0.0
        infer.main(sys.argv[1:])
    """
    output = tmp_path / "submission.csv"
    given = ["--input", tiny.raw, "--models", tiny_run, "--sample", tiny.sample, "--output", output]
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, given), "--max-hours", "0.0001"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert finished.returncode == 0 and "stuck" in finished.stderr
    assert check_submission(output, tiny.sample) == 3
    assert set(read_report(tmp_path).status) == {"not reached", "prior"}
