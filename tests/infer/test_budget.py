"""Time: what is left out when a run is late, in which order, and how signals end it."""

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
from src.core.errors import UserError
from src.infer.budget import FIRST_SERIES, Cost, Pace
from src.infer.check import check_submission
from src.infer.ensemble import Ensemble, Share
from src.infer.fallback import CarefulNetworks
from src.infer.inputs import open_source
from src.infer.networks import Care, Networks, Prediction
from src.infer.placement import Placement
from src.infer.sources import ReadSeries
from src.infer.stopping import stop_on_signals
from src.score.metric import check_probabilities
from tests.helpers.infer_runs import read_report, submit, train_small

ROOT = Path(__file__).resolve().parents[2]
COSTS = [
    Cost(Share((5, 5)), (10, 10), True),
    Cost(Share((5, 5), tta=False), (5, 5), True),
    Cost(Share((1, 0), tta=False), (1, 0), False),
]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Machine:
    """Seconds that a series takes."""

    read_s, organs_s = 0.1, 0.0
    pass_s = (1.0, 1.0)
    """of each run"""

    def run(self, series, max_s, jobs=1, side_by_side=True):
        """The level that each series got, and the seconds of all."""
        clock = Clock()
        pace = Pace(series, COSTS, max_s, jobs=jobs, side_by_side=side_by_side, started=clock(), clock=clock)
        got = []
        while pace.done < series and not pace.is_over:
            cost = next(cost for cost in COSTS if cost.share == pace.share)
            organs_s = self.organs_s * cost.finds_organs
            runs_s = tuple(passes * each for passes, each in zip(cost.passes, self.pass_s, strict=True))
            predict_s, read_s = organs_s + sum(runs_s), self.read_s / jobs
            clock.now += max(read_s, predict_s) if side_by_side else read_s + predict_s
            got.append(COSTS.index(cost))
            self.after(len(got))
            read = ReadSeries("1", "2", decode_s=self.read_s)
            pace.note(read, Prediction(np.zeros((2, 13)), organs_s, runs_s))
        return got, clock() - 100.0

    def after(self, series):
        """What changes once that many are done."""


def test_with_time_enough_everything_is_done():
    assert set(Machine().run(100, max_s=2500)[0]) == {0}
    assert set(Machine().run(100, max_s=math.inf)[0]) == {0}


def test_a_late_run_leaves_out_just_enough():
    got, took_s = Machine().run(100, max_s=1500)
    assert len(got) == 100 and took_s <= 1500
    assert got[:FIRST_SERIES] == [0] * FIRST_SERIES and set(got) == {0, 1}
    assert got.count(0) > 25  # what is saved is spent: it would be 50 at best


def test_shares_do_not_change_at_every_series():
    got, _ = Machine().run(1000, max_s=15000)
    assert sum(now != before for now, before in itertools.pairwise(got)) < 100


def test_with_very_little_time_the_least_is_done():
    got, took_s = Machine().run(100, max_s=300)
    assert len(got) == 100 and took_s <= 300 and got.count(2) > 80


def test_where_reading_is_the_limit_nothing_is_left_out():
    machine = Machine()
    machine.read_s = 25.0
    assert set(machine.run(100, max_s=500)[0]) == {0}
    assert 2 in machine.run(100, max_s=2600, side_by_side=False)[0]


def test_a_series_that_hangs_does_not_make_the_others_look_slow():
    clock = Clock()
    pace = Pace(200, COSTS, 1e4, side_by_side=False, started=clock(), clock=clock)
    for number in range(100):
        seconds, reason = (330.0, "every decoder hangs on it") if number == 50 else (0.1, "")
        clock.now += seconds + (0.0 if reason else 20.0)
        read = ReadSeries("1", "2", reason=reason, decode_s=seconds)
        pace.note(read, None if reason else Prediction(np.zeros((2, 13)), 0.0, (10.0, 10.0)))
        assert pace.share == COSTS[0].share


def test_organs_are_no_cost_where_nobody_looks_at_them():
    machine = Machine()
    machine.organs_s, machine.pass_s = 100.0, (0.1, 0.1)
    got, took_s = machine.run(100, max_s=3000)
    assert len(got) == 100 and took_s <= 3000 and got.count(2) > 60


def test_a_dear_run_is_known_to_be_dear():
    machine = Machine()
    machine.pass_s = (0.01, 10.0)  # the one that goes last is cheap
    got, took_s = machine.run(100, max_s=1200)
    assert len(got) == 100 and took_s <= 1200


def test_a_pace_that_changes_is_noticed():
    machine = Machine()

    def gpu_fails(series):
        if series == 200:
            machine.pass_s = (30.0, 30.0)

    machine.after = gpu_fails
    got, _ = machine.run(300, max_s=12000)
    assert len(got) > 280  # with a mean over all series two thirds of them would not be reached


def test_more_threads_read_faster():
    machine = Machine()
    machine.read_s, machine.pass_s = 80.0, (0.01, 0.01)
    assert machine.run(10, math.inf, jobs=4)[1] == machine.run(10, math.inf)[1] / 4


@pytest.fixture
def heeded():
    """Ctrl-C works, which a job in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_noted_and_the_second_ctrl_c_interrupts(heeded):
    with stop_on_signals() as stop:
        assert stop.name == "" and stop.exit_status == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT" and stop.exit_status == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Two runs of two folds; the first looks with two flips and two offsets."""
    folder = tmp_path_factory.mktemp("runs")
    more = "--tta none h --offsets 2"
    return [train_small(tiny, folder / "a", more), train_small(tiny, folder / "b", "--seed 1")]


def test_a_signal_that_the_process_ignores_ends_nothing():
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.name
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.name == "SIGTERM"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_flips_and_offsets_go_first_then_folds_then_runs(runs):
    ensemble = Ensemble(runs, Placement.on_cpu(), (0.25, 0.75))
    assert ensemble.shares == [
        Share((2, 2)),
        Share((2, 2), tta=False),
        Share((1, 2), tta=False),
        Share((1, 1), tta=False),
        Share((0, 1), tta=False),
    ]
    passes = [ensemble.count_passes(share) for share in ensemble.shares]
    assert passes == [(8, 2), (2, 2), (1, 2), (1, 1), (0, 1)]
    assert Ensemble(runs, Placement.on_cpu(), (0.75, 0.25)).shares[-1] == Share((1, 0), tta=False)


def test_a_run_without_weight_is_not_asked(tiny, runs, tmp_path):
    assert Ensemble(runs, Placement.on_cpu(), (1.0, 0.0)).shares[0] == Share((2, 0))
    both = submit(tiny.raw, runs, tiny.sample, tmp_path / "both", "--weights", 1, 0)
    alone = submit(tiny.raw, runs[0], tiny.sample, tmp_path / "alone")
    np.testing.assert_allclose(both, alone, atol=1e-12)


def test_weights_are_those_of_the_runs(tiny, runs, tmp_path):
    one, two = (submit(tiny.raw, run, tiny.sample, tmp_path / run.name) for run in runs)
    joined = submit(tiny.raw, runs, tiny.sample, tmp_path / "joined", "--weights", 3, 1)
    np.testing.assert_allclose(joined, 0.75 * one + 0.25 * two, atol=1e-6)


@pytest.mark.parametrize("weights", [(1,), (-1, 2), (0, 0)])
def test_weights_that_make_no_sense_are_refused(tiny, runs, tmp_path, weights):
    with pytest.raises(UserError, match="--weights takes a number for each of the 2"):
        submit(tiny.raw, runs, tiny.sample, tmp_path, "--weights", *weights)


def test_a_run_that_is_left_out_is_made_up_for_by_the_weights(tiny, runs):
    networks = Networks(Placement.on_cpu(), [*runs, runs[0]], (0.6, 0.3, 0.1))
    source = open_source(tiny.raw, networks)
    patient_id = sorted(path.name for path in (tiny.raw / "test_images").iterdir())[0]
    series = source.decode(patient_id, source.series_of(patient_id)[0])()
    first, second, third = networks.predict(series, Share((2, 2, 0)), Care()).probabilities
    np.testing.assert_allclose(third, (2 * first + second) / 3)


def test_a_late_run_says_what_it_left_out(tiny, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("src.infer.budget.FIRST_SERIES", 1)
    predict = CarefulNetworks.predict

    def slowly(self, series, share, check):
        prediction = predict(self, series, share, check)
        return prediction._replace(runs_s=(4e4, 4e4))  # at this pace there is no time for another one

    monkeypatch.setattr(CarefulNetworks, "predict", slowly)
    submission = submit(tiny.raw, runs, tiny.sample, tmp_path, "--max-hours", 9)
    report = read_report(tmp_path)
    check_probabilities(submission.reset_index())
    assert "thinned" in set(report.status) and "ok" in set(report.status)
    assert report[report.status == "thinned"].reason.str.contains("of 10 forward passes").all()
    assert "late: from now on" in capsys.readouterr().out


def test_time_that_is_over_ends_a_series_in_its_middle(tiny, runs, tmp_path, monkeypatch):
    """Between the forward passes of a series of ten."""
    now, forward, passes = [0.0], TraumaClassifier.forward, []

    def slow(self, *parts, **more):
        now[0] += 1000.0
        passes.append(now[0])
        return forward(self, *parts, **more)

    monkeypatch.setattr(TraumaClassifier, "forward", slow)
    monkeypatch.setattr(Pace, "left_s", property(lambda pace: 3600.0 - now[0]))
    submit(tiny.raw, runs, tiny.sample, tmp_path, "--max-hours", 1)
    assert len(passes) == 4
    assert set(read_report(tmp_path).status) == {"not reached", "prior"}


def test_a_run_that_does_not_answer_is_ended(tmp_path):
    """In a process of its own: it ends at once, whatever its main thread does."""
    code = """
        import time
        from src.infer.stopping import last_resort

        with last_resort(0.2, lambda: print("saved", flush=True)):
            time.sleep(60)
    """
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert finished.returncode == 0 and finished.stdout == "saved\n" and "stuck" in finished.stderr


def test_a_gpu_that_never_answers_at_the_start_ends_as_well(tiny, runs, tmp_path):
    code = """
        import sys, time
        import infer
        from src.infer.fallback import CarefulNetworks

        CarefulNetworks.move = lambda networks, place: time.sleep(60)
        infer.GRACE_S = 0.0
        infer.main(sys.argv[1:])
    """
    output = tmp_path / "submission.csv"
    given = ["--input", tiny.raw, "--models", *runs, "--sample", tiny.sample, "--output", output]
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, given), "--max-hours", "0.0001"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert finished.returncode == 0 and "stuck" in finished.stderr
    assert check_submission(output, tiny.sample) == 3
    assert set(read_report(tmp_path).status) == {"not reached", "prior"}
