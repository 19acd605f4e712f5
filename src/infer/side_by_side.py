"""Predict series on several devices, each in a thread of its own with another series."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from src.infer.budget import RunEnds, TimeBudget
from src.infer.ensemble import EnsembleSubset, Prediction
from src.infer.predictor import SeriesPredictor
from src.infer.stack_sources import LoadedSeries


class Outcome(NamedTuple):
    """What came of a series."""

    series: LoadedSeries
    subset: EnsembleSubset
    """part of the ensemble that was to predict it"""
    thinned: str
    """description of that part, if it is not all"""
    prediction: Prediction | None
    error: Exception | None
    """reason why there is no prediction, if the series could be read"""


def predict_side_by_side(
    stream: Iterable[LoadedSeries], predictors: Sequence[SeriesPredictor], budget: TimeBudget
) -> Iterator[Outcome]:
    """Yield the outcome of each series; several predictors work in threads, each on another series.

    Raises:
        RunEnds: the run has to end.
    """
    if len(predictors) == 1:
        for series in stream:
            yield _attempt(predictors[0], series, budget.subset, budget.thinned, budget)
        return
    idle, busy = list(predictors), {}
    with ThreadPoolExecutor(len(predictors)) as pool:
        for series in stream:
            predictor = idle.pop()
            given = (predictor, series, budget.subset, budget.thinned, budget)
            busy[pool.submit(_attempt, *given)] = predictor
            while not idle:
                yield from _finished(busy, idle)
        while busy:
            yield from _finished(busy, idle)


def _finished(busy: dict[Future[Outcome], SeriesPredictor], idle: list[SeriesPredictor]) -> Iterator[Outcome]:
    """Wait until a predictor is idle again; yield the outcome of its series."""
    for future in wait(busy, return_when=FIRST_COMPLETED).done:
        idle.append(busy.pop(future))
        yield future.result()


def _attempt(
    predictor: SeriesPredictor,
    series: LoadedSeries,
    subset: EnsembleSubset,
    thinned: str,
    budget: TimeBudget,
) -> Outcome:
    prediction, error = None, None
    if not series.reason:
        try:
            prediction = predictor.predict(series, subset, budget.check)
        except RunEnds:
            raise
        except Exception as failure:  # no error in a series may end a submission
            error = failure
    return Outcome(series, subset, thinned, prediction, error)
