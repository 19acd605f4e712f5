"""When a run ends, and what it omits to be in time: the time limit, signals, and a GPU that never answers."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from src.core.log import say, warn
from src.infer.ensemble import EnsembleSubset, Prediction

PLANNED, PLANNED_WHEN_LATE = 0.95, 0.8
"""Share of the time left that must be enough for everything: less than all, and once a run is late yet less
before it returns to everything, so that it does not change its mind with every series."""

SAY_EVERY_S = 120.0
FIRST_SERIES = 8
"""Before the pace is judged: the first ones wait for files and for the GPU to warm up."""

NEWEST = 0.1
"""Weight of the last series in the means: the pace may change, as where a GPU fails."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP"))


class RunEnds(Exception):
    """The run has to end now, in the middle of a series; the message says why."""


@dataclass
class StopRequest:
    """Whether the run was asked to end: by SIGTERM, by Ctrl-C, or since its terminal was closed."""

    received: signal.Signals | None = None


class TimeBudget:
    """Measures how fast series go, predicts the end of the run, and chooses how much is done with each.

    Args:
        series: how many there are.
        subsets: of the ensemble: everything, and perhaps what a late run does.
        max_s: seconds that the run may take from `started` on; infinity sets no limit.
        started: when the run began, of `clock`.
        jobs: threads that read.
        side_by_side: whether reading and predicting do not slow each other, as on a GPU.
        stop: ends the run too.
    """

    def __init__(
        self,
        series: int,
        subsets: Sequence[EnsembleSubset],
        max_s: float,
        *,
        started: float,
        jobs: int = 1,
        side_by_side: bool = True,
        stop: StopRequest | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.series, self._full, self._reduced = series, subsets[0], subsets[-1]
        self.subset, self.done = self._full, 0
        """what the next series gets, and how many there were"""
        self._jobs, self._side_by_side, self._stop = jobs, side_by_side, stop or StopRequest()
        self._clock, self._started, self._ends, self._said = clock, started, started + max_s, clock()
        self._read_s, self._organs_s = _RunningMean(), _RunningMean()
        self._pass_s = [_RunningMean() for _ in self._full.passes]

    @property
    def left_s(self) -> float:
        """Until the limit."""
        return self._ends - self._clock()

    def check(self) -> None:
        """Raises RunEnds where a signal or the time limit ends the run."""
        if self._stop.received is not None:
            raise RunEnds(self._stop.received.name)
        if self.left_s <= 0:
            raise RunEnds("the time of --max-hours is spent")

    @property
    def thinned(self) -> str:
        """How much of everything the next series gets; empty if it gets all."""
        if self.subset == self._full:
            return ""
        return f"{sum(self.subset.passes)} of {sum(self._full.passes)} forward passes"

    def note(self, read_s: float | None, prediction: Prediction | None) -> None:
        """Take in one more series.

        Args:
            read_s: None where it cannot be read: a hang of minutes predicts nothing for the other series.
            prediction: None where there is none.
        """
        self.done += 1
        if read_s is not None:
            self._read_s.add(read_s)
        if prediction is not None:
            if self.subset.needs_organs:
                self._organs_s.add(prediction.organs_s)
            for mean, passes, run_s in zip(self._pass_s, self.subset.passes, prediction.runs_s, strict=True):
                if passes:
                    mean.add(run_s / passes)
        self._choose()
        if self._clock() - self._said >= SAY_EVERY_S:
            self._said = self._clock()
            say(self.describe())

    def describe(self) -> str:
        """One line for the log."""
        ends_s = (self.series - self.done) * self._series_s(self.subset)
        at = time.strftime("%H:%M", time.localtime(time.time() + ends_s))
        return (
            f"{self.done} of {self.series} series in {_hours(self._clock() - self._started)}; per series: "
            f"{self._read_s.value:.2f} s to read in {self._jobs} thread(s), "
            f"{self._predict_s(self.subset):.2f} s to predict; ends in about {_hours(ends_s)}, at {at}"
        )

    def _series_s(self, subset: EnsembleSubset) -> float:
        """Seconds that a series is expected to take."""
        read_s, predict_s = self._read_s.value / self._jobs, self._predict_s(subset)
        return max(read_s, predict_s) if self._side_by_side else read_s + predict_s

    def _predict_s(self, subset: EnsembleSubset) -> float:
        runs_s = sum(mean.value * passes for mean, passes in zip(self._pass_s, subset.passes, strict=True))
        return runs_s + (self._organs_s.value if subset.needs_organs else 0.0)

    def _choose(self) -> None:
        """Everything where it is in time, or where reading takes longer: less would save nothing."""
        left = self.series - self.done
        if left == 0 or self.done < min(FIRST_SERIES, self.series):
            return
        is_late = self.subset != self._full
        limit_s = (PLANNED_WHEN_LATE if is_late else PLANNED) * self.left_s / left
        if self._side_by_side:
            limit_s = max(limit_s, self._read_s.value / self._jobs)
        chosen = self._full if self._series_s(self._full) <= limit_s else self._reduced
        if chosen != self.subset:
            self.subset = chosen
            if is_late:
                say("in time again: from now on all forward passes per series")
            else:
                say(f"late: from now on {self.thinned} per series (one fold of each run, no TTA)")


class _RunningMean:
    """Recent values count most; the first ones count the same."""

    def __init__(self) -> None:
        self.value, self._count = 0.0, 0

    def add(self, value: float) -> None:
        self._count += 1
        self.value += (value - self.value) * max(NEWEST, 1 / self._count)


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes else f"{seconds:.0f} s"


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Note a signal inside the block instead of ending; a second Ctrl-C interrupts.

    What the process ignores, as SIGHUP under nohup, it goes on to ignore.
    """
    request = StopRequest()

    def note(number: int, _: object) -> None:
        if request.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.received = signal.Signals(number)

    if threading.current_thread() is not threading.main_thread():  # only that one may
        yield request
        return
    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def last_resort(after_s: float, save: Callable[[], None]) -> Iterator[None]:
    """Where the block still runs after that long, save and end the process: a GPU may never answer.

    Args:
        after_s: infinity waits forever.
        save: may run while the block does.
    """
    is_done = threading.Event()

    def watch() -> None:
        if not is_done.wait(min(after_s, threading.TIMEOUT_MAX)):
            warn("the run is stuck beyond its time: it ends with what it has")
            try:
                save()
            finally:
                os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_done.set()
