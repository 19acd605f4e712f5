"""Time: how long a run may take, when it will end, and what it leaves out to be in time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from src.core.log import say
from src.infer.ensemble import Share
from src.infer.networks import Networks, Prediction
from src.infer.sources import ReadSeries

SAFETY = 0.95
"""Of the time that is left: what is planned with."""

BACK_AT = 0.85
"""Of the same: what must be enough for a share before it is taken up again."""

SAY_EVERY_S = 120.0
FIRST_SERIES = 8
"""Before the pace is judged: the first ones wait for files and for the GPU to warm up."""

NEWEST = 0.1
"""Weight of the last series in the means: the pace may change, as where a GPU fails."""


@dataclass(frozen=True)
class Cost:
    """What a share asks for with a series."""

    share: Share
    passes: tuple[int, ...]
    """forward passes of each run"""
    finds_organs: bool


def list_costs(networks: Networks) -> list[Cost]:
    """What may be done with a series, from everything to least."""
    ensemble = networks.ensemble
    return [
        Cost(share, ensemble.count_passes(share), ensemble.needs_organs(share)) for share in ensemble.shares
    ]


class Pace:
    """Measures how fast series go, says when the run will end, and chooses how much is done with each.

    Args:
        series: how many there are.
        costs: of what may be done with a series, from everything to least.
        max_s: seconds that the run may take from `started` on; infinity sets no limit.
        jobs: threads that read.
        side_by_side: whether reading and predicting do not slow each other, as on a GPU.
        started: when the run began, of `clock`.
    """

    def __init__(
        self,
        series: int,
        costs: Sequence[Cost],
        max_s: float,
        *,
        jobs: int = 1,
        side_by_side: bool = True,
        started: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.series, self.costs, self._jobs, self._side_by_side = series, costs, jobs, side_by_side
        self._clock, self._started = clock, started
        self._ends = started + max_s
        self._said, self._level, self.done = clock(), 0, 0
        self._read_s, self._organs_s = _Mean(), _Mean()
        self._pass_s = [_Mean() for _ in costs[0].passes]

    @property
    def left_s(self) -> float:
        """Until the limit."""
        return self._ends - self._clock()

    @property
    def is_over(self) -> bool:
        return self.left_s <= 0

    @property
    def share(self) -> Share:
        """What the next series gets."""
        return self.costs[self._level].share

    @property
    def thinned(self) -> str:
        """How much the next series gets, in words; empty if it gets everything."""
        passes, every = (sum(self.costs[level].passes) for level in (self._level, 0))
        return f"{passes} of {every} forward passes" if self._level else ""

    def note(self, series: ReadSeries, prediction: Prediction | None) -> None:
        """Take in one more series, predicted or not."""
        self.done += 1
        if not series.reason:  # what could not be read took no time that tells of others: minutes for a hang
            self._read_s.add(series.decode_s + series.transform_s)
        if prediction is not None:
            cost = self.costs[self._level]
            if cost.finds_organs:
                self._organs_s.add(prediction.organs_s)
            for mean, passes, run_s in zip(self._pass_s, cost.passes, prediction.runs_s, strict=True):
                if passes:
                    mean.add(run_s / passes)
        self._choose()
        if self._clock() - self._said >= SAY_EVERY_S:
            self._said = self._clock()
            say(self.describe())

    def series_s(self, level: int = 0) -> float:
        """Seconds that a series is expected to take."""
        read_s, predict_s = self._read_s.value / self._jobs, self._predict_s(level)
        return max(read_s, predict_s) if self._side_by_side else read_s + predict_s

    def describe(self) -> str:
        """One line for the log."""
        ends_s = (self.series - self.done) * self.series_s(self._level)
        at = time.strftime("%H:%M", time.localtime(time.time() + ends_s))
        return (
            f"{self.done} of {self.series} series in {_hours(self._clock() - self._started)}; a series: "
            f"{self._read_s.value:.2f} s to read in {self._jobs} thread(s), "
            f"{self._predict_s(self._level):.2f} s to predict; ends in about {_hours(ends_s)}, at {at}"
        )

    def _predict_s(self, level: int) -> float:
        cost = self.costs[level]
        runs_s = sum(mean.value * passes for mean, passes in zip(self._pass_s, cost.passes, strict=True))
        return runs_s + (self._organs_s.value if cost.finds_organs else 0.0)

    def _choose(self) -> None:
        """The fullest share that is in time; what costs less than reading does would save nothing."""
        left = self.series - self.done
        if left == 0 or self.done < min(FIRST_SERIES, self.series):
            return
        limit_s = SAFETY * self.left_s / left
        if self._side_by_side:
            limit_s = max(limit_s, self._read_s.value / self._jobs)
        last = len(self.costs) - 1
        level = next((level for level in range(last) if self.series_s(level) <= limit_s), last)
        while level < self._level and self.series_s(level) > BACK_AT * limit_s:
            level += 1
        if level != self._level:
            what = "late" if level > self._level else "in time again"
            self._level = level
            share = self.share
            say(
                f"{what}: from now on {self.thinned or 'all forward passes'} a series "
                f"(folds of each run: {' '.join(map(str, share.folds))}{'' if share.tta else '; no TTA'})"
            )


class _Mean:
    """Of values of which the last ones count most; of the first ones, all the same."""

    def __init__(self) -> None:
        self.value, self._count = 0.0, 0

    def add(self, value: float) -> None:
        self._count += 1
        self.value += (value - self.value) * max(NEWEST, 1 / self._count)


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes else f"{seconds:.0f} s"
