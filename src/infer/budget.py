"""Time budget of a run: the time limit, signals, work to skip when late, and a GPU that never answers."""

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
"""Share of the remaining time that the planned work may take. A run that is late must get below the lower
value before it returns to the full ensemble, so that it does not switch back and forth."""

SAY_EVERY_S = 120.0
FIRST_SERIES = 8
"""Number of series before the pace is judged: the first ones wait for files and for the GPU to warm up."""

NEWEST = 0.1
"""Weight of the latest series in the means: the pace may change, for example if a GPU fails."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP"))


class RunEnds(Exception):
    """The run has to end now, in the middle of a series; the message is the reason."""


@dataclass
class StopRequest:
    """Records a request to end: SIGTERM, Ctrl-C, or a closed terminal."""

    received: signal.Signals | None = None


class TimeBudget:
    """Measures the pace of a run, predicts its end, and chooses the ensemble subset for each series.

    Args:
        series: number of series.
        subsets: subsets of the ensemble: the full one and, optionally, one for late runs.
        max_s: time limit in seconds from `started` on; infinity sets no limit.
        started: start of the run, as measured by `clock`.
        jobs: number of threads that read.
        devices: number of devices that predict, each another series.
        side_by_side: whether reading and predicting do not slow down each other, as on a GPU.
        stop: request that also ends the run.
    """

    def __init__(
        self,
        series: int,
        subsets: Sequence[EnsembleSubset],
        max_s: float,
        *,
        started: float,
        jobs: int = 1,
        devices: int = 1,
        side_by_side: bool = True,
        stop: StopRequest | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.series, self._full, self._reduced = series, subsets[0], subsets[-1]
        self.subset, self.done = self._full, 0
        """subset for the next series, and number of series done"""
        self._jobs, self._devices, self._side_by_side = jobs, devices, side_by_side
        self._stop = stop or StopRequest()
        self._clock, self._started, self._ends, self._said = clock, started, started + max_s, clock()
        self._read_s, self._organs_s = _RunningMean(), _RunningMean()
        self._pass_s = [_RunningMean() for _ in self._full.passes]

    @property
    def left_s(self) -> float:
        """Seconds until the limit."""
        return self._ends - self._clock()

    def check(self) -> None:
        """Raise RunEnds if a signal or the time limit ends the run."""
        if self._stop.received is not None:
            raise RunEnds(self._stop.received.name)
        if self.left_s <= 0:
            raise RunEnds("the time of --max-hours is spent")

    @property
    def thinned(self) -> str:
        """Description of the reduced subset for the next series; empty for the full ensemble."""
        if self.subset == self._full:
            return ""
        return f"{sum(self.subset.passes)} of {sum(self._full.passes)} forward passes"

    def note(self, read_s: float | None, prediction: Prediction | None, subset: EnsembleSubset) -> None:
        """Record one more series.

        Args:
            read_s: None if it cannot be read: a hang of minutes says nothing about the other series.
            prediction: None if there is none.
            subset: the subset that predicted it.
        """
        self.done += 1
        if read_s is not None:
            self._read_s.add(read_s)
        if prediction is not None:
            if subset.needs_organs:
                self._organs_s.add(prediction.organs_s)
            for mean, passes, run_s in zip(self._pass_s, subset.passes, prediction.runs_s, strict=True):
                if passes:
                    mean.add(run_s / passes)
        self._choose()
        if self._clock() - self._said >= SAY_EVERY_S:
            self._said = self._clock()
            say(self.describe())

    def describe(self) -> str:
        """Describe the budget in one line for the log."""
        ends_s = (self.series - self.done) * self._series_s(self.subset)
        at = time.strftime("%H:%M", time.localtime(time.time() + ends_s))
        return (
            f"{self.done} of {self.series} series in {_hours(self._clock() - self._started)}; per series: "
            f"{self._read_s.value:.2f} s to read in {self._jobs} thread(s), "
            f"{self._predict_s(self.subset):.2f} s to predict on {self._devices} device(s); "
            f"ends in about {_hours(ends_s)}, at {at}"
        )

    def _series_s(self, subset: EnsembleSubset) -> float:
        """Expected seconds per series."""
        read_s, predict_s = self._read_s.value / self._jobs, self._predict_s(subset) / self._devices
        return max(read_s, predict_s) if self._side_by_side else read_s + predict_s

    def _predict_s(self, subset: EnsembleSubset) -> float:
        runs_s = sum(mean.value * passes for mean, passes in zip(self._pass_s, subset.passes, strict=True))
        return runs_s + (self._organs_s.value if subset.needs_organs else 0.0)

    def _choose(self) -> None:
        """Choose the full ensemble if it is in time, or if reading is the bottleneck anyway."""
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
    """Mean in which recent values count most; the first values count equally."""

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
    """Record a signal inside the block instead of ending; a second Ctrl-C interrupts.

    Signals that the process ignores, such as SIGHUP under nohup, stay ignored.
    """
    request = StopRequest()

    def note(number: int, _: object) -> None:
        if request.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.received = signal.Signals(number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may install handlers
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
    """If the block still runs after a time limit, save and end the process: a GPU may never answer.

    Args:
        after_s: time limit in seconds; infinity sets none.
        save: may be called while the block runs.
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
