"""Time: how long a run may take, when it will end, and what it leaves out to be in time."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from src.core.log import say
from src.infer.ensemble import Share
from src.infer.networks import Answer
from src.infer.sources import ReadSeries

SAFETY = 0.95
"""Of the time that is left: what is planned with."""

SAY_EVERY_S = 120.0
FIRST_SERIES = 8
"""Before the pace is judged: the first ones wait for files and for the GPU to warm up."""


class StopRequest:
    """Whether the run was asked to end: by SIGTERM, or by Ctrl-C."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def name(self) -> str:
        return signal.Signals(self.signal).name if self.signal else ""

    @property
    def exit_status(self) -> int:
        """As a shell tells of a program that a signal ended."""
        return 128 + self.signal if self.signal else 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Note SIGTERM or SIGINT inside the block instead of dying of it; a second SIGINT interrupts."""
    request = StopRequest()

    def note(number: int, _: object) -> None:
        if request.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = number

    if threading.current_thread() is not threading.main_thread():  # only that one may
        yield request
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Pace:
    """Measures how fast series go, says when the run will end, and chooses how much is done with each.

    Args:
        series: how many there are.
        shares: what may be done with a series, from everything to least; see `Ensemble.shares`.
        passes: forward passes of each share.
        max_s: seconds that the run may take from `started` on; None sets no limit.
        jobs: threads that read.
        started: when the run began, of `clock`.
    """

    def __init__(
        self,
        series: int,
        shares: Sequence[Share],
        passes: Sequence[int],
        max_s: float | None,
        jobs: int,
        started: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.series, self.shares, self.passes, self.jobs = series, shares, passes, jobs
        self._clock, self._started = clock, started
        self._ends = None if max_s is None else started + max_s
        self._first, self._said, self._level = clock(), clock(), 0
        self.done = 0
        self._read_s = self._organs_s = self._models_s = 0.0
        self._passes = 0

    @property
    def left_s(self) -> float:
        """Until the limit."""
        return float("inf") if self._ends is None else self._ends - self._clock()

    @property
    def is_over(self) -> bool:
        return self.left_s <= 0

    @property
    def share(self) -> Share:
        """What the next series gets."""
        return self.shares[self._level]

    @property
    def thinned(self) -> str:
        """How much the next series gets, in words; empty if it gets everything."""
        return f"{self.passes[self._level]} of {self.passes[0]} forward passes" if self._level else ""

    def note(self, series: ReadSeries, answer: Answer | None, predict_s: float) -> None:
        """Take in one more series.

        Args:
            answer: None where it has none.
            predict_s: seconds that the networks took, all attempts together.
        """
        self.done += 1
        self._read_s += series.decode_s + series.transform_s
        organs_s = 0.0 if answer is None else answer.organs_s
        self._organs_s += organs_s
        self._models_s += predict_s - organs_s
        self._passes += self.passes[self._level] if predict_s else 0
        self._choose()
        now = self._clock()
        if now - self._said >= SAY_EVERY_S:
            self._said = now
            say(self.describe())

    def series_s(self, level: int) -> float:
        """Seconds that a series is expected to take with a share: reading and predicting go side by side."""
        if self.done == 0:
            return 0.0
        predict_s = self._organs_s + self._models_s * self.passes[level] * self.done / max(self._passes, 1)
        return max(self._read_s / self.jobs, predict_s) / self.done

    def describe(self) -> str:
        """One line for the log."""
        ends_s = (self.series - self.done) * self.series_s(self._level)
        at = time.strftime("%H:%M", time.localtime(time.time() + ends_s))
        models_s = (self._organs_s + self._models_s) / max(self.done, 1)
        return (
            f"{self.done} of {self.series} series in {_hours(self._clock() - self._started)}; "
            f"a series: {self._read_s / max(self.done, 1):.2f} s to read in {self.jobs} thread(s), "
            f"{models_s:.2f} s to predict; ends in about {_hours(ends_s)}, at {at}"
        )

    def _choose(self) -> None:
        """The fullest share that is in time; what costs less than reading does would save nothing."""
        if self._ends is None or self.done < min(FIRST_SERIES, self.series):
            return
        left = self.series - self.done
        limit_s = max(SAFETY * self.left_s / max(left, 1), self._read_s / self.jobs / self.done)
        fitting = [level for level in range(len(self.shares)) if self.series_s(level) <= limit_s]
        level = fitting[0] if fitting else len(self.shares) - 1
        if level != self._level:
            share = self.shares[level]
            say(
                f"{'late' if level > self._level else 'in time again'}: from now on "
                f"{self.passes[level]} of {self.passes[0]} forward passes a series "
                f"(folds of each run: {' '.join(map(str, share.folds))}{'' if share.tta else '; no TTA'})"
            )
        self._level = level


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes else f"{seconds:.0f} s"
