"""Test images to submission.csv: series are read ahead in threads and predicted one by one."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pandas as pd

from src.core.errors import UserError
from src.core.files import require_writable
from src.core.isolation import ChildNotStarted
from src.core.log import progress, say, warn
from src.ct.series import UnreachableSeries
from src.infer.budget import RunEnds, TimeBudget, last_resort, stop_on_signals
from src.infer.ensemble import Ensemble
from src.infer.options import InferOptions
from src.infer.predictor import SeriesPredictor
from src.infer.results import PREDICTED, Results, describe_error, read_sample
from src.infer.stack_sources import LoadedSeries, StackSource, open_source
from src.score.postprocess import post_of_runs

GRACE_S = 300.0
"""Seconds after --max-hours before a run that does not respond is ended."""

SAVE_EVERY_S = 600.0

AHEAD = 2
"""Number of series that may be ready or in progress, besides one per decoding thread."""

WAIT_S = 0.5
"""Seconds to wait for a series before checking the clock and signals again."""

STUCK_S = 1800.0
"""Seconds without a series after which reading ends: no file system recovers after that long."""

ATTEMPTS, PAUSE_S = 3, 10.0
"""Attempts to read a series that fails because of the machine, and the pause between them."""


def predict_patients(options: InferOptions, started: float) -> None:
    """Predict the patients of the sample; leaves a valid submission even if the run ends early.

    Args:
        started: start of the run, as measured by `time.monotonic`.

    Raises:
        UserError: unusable inputs, or no series could be predicted.
        SystemExit: a signal ended the run.
    """
    if not options.input.exists():
        raise UserError(f"no folder or file {options.input} (--input)")
    require_writable(options.output)
    sample, post = read_sample(options.sample), post_of_runs(options.models, options.weights, options.post)
    limit_s = math.inf if options.max_hours is None else 3600 * options.max_hours
    with stop_on_signals() as stop:
        ensemble = Ensemble(options.models, post.weights, options.segmenter, options.tta)
        source = open_source(options.input, ensemble.stack_kinds, ensemble.segmenter)
        series = order_series(source, sample.patient_id)
        results = Results(series, sample, post, ensemble.prior, source.why_none)
        save = partial(results.save, options.output)
        save()  # writes the prior for every patient, so that a valid submission exists
        try:
            with last_resort(started + limit_s + GRACE_S - time.monotonic(), save):
                predictor = SeriesPredictor(ensemble)
                predictor.use_fastest(options.precision)
                device = predictor.ensemble.device
                budget = TimeBudget(
                    len(series),
                    ensemble.subsets,
                    limit_s,
                    started=started,
                    jobs=options.threads,
                    side_by_side=device.type != "cpu",
                    stop=stop,
                )
                passes = sum(ensemble.full.passes)
                say(f"{len(sample)} patients, {len(series)} series, {passes} forward passes each; {device}")
                reader = ReadAhead(source, series, options.threads)
                why_early = predict_all(reader, predictor, results, budget, save)
        finally:
            save()
    _summarise(results.report(), why_early, options.output)
    if stop.received is not None:
        raise SystemExit(128 + stop.received)  # the exit status that shells use


def order_series(source: StackSource, patient_ids: Sequence[str]) -> list[tuple[str, str]]:
    """Return patient and series ids: the first series of every patient, then the second ones.

    A run that ends early thus has predictions for as many patients as possible.
    """
    ranked = [
        (rank, patient_id, series_id)
        for patient_id in patient_ids
        for rank, series_id in enumerate(source.series_of(patient_id))
    ]
    ranked.sort(key=lambda item: item[0])  # stable: patients keep their order
    return [(patient_id, series_id) for _, patient_id, series_id in ranked]


def predict_all(
    reader: "ReadAhead",
    predictor: SeriesPredictor,
    results: Results,
    budget: TimeBudget,
    save: Callable[[], None],
) -> str:
    """Predict series into `results` as they are read, until all are done or the run has to end.

    A series that cannot be read or predicted, for any reason, is skipped.

    Args:
        save: called regularly, so that even a killed run leaves results; it may fail.

    Returns:
        Reason for an early end; empty if there was none.
    """
    saved = time.monotonic()
    try:
        for series in progress(reader.read(budget), reader.left, "series"):
            prediction, thinned = None, budget.thinned
            if series.reason:
                results.skip(series.key, series.reason)
            else:
                try:
                    prediction = predictor.predict(series, budget.subset, budget.check)
                except RunEnds:
                    raise
                except Exception as error:  # no error in a series may end a submission
                    reason = describe_error(error)
                    warn(f"{'/'.join(series.key)} could not be predicted: {reason}")
                    results.skip(series.key, reason)
                else:
                    remarks = [remark.text for remark in series.remarks]
                    reason = "; ".join(part for part in (*remarks, thinned, prediction.note) if part)
                    is_doubtful = any(remark.doubtful for remark in series.remarks)
                    status = "doubtful" if is_doubtful else "thinned" if thinned else "ok"
                    results.add(series.key, prediction.probabilities, status, reason)
            budget.note(None if series.reason else series.read_s, prediction)
            if time.monotonic() - saved >= SAVE_EVERY_S:
                try:
                    save()
                except Exception as error:  # such as a full disk, which may have room again at the end
                    warn(f"what is known so far could not be saved: {describe_error(error)}")
                saved = time.monotonic()
    except RunEnds as end:
        return str(end)
    finally:
        reader.stop()
    return ""


class ReadAhead:
    """Reads series in threads while the models predict others.

    Some threads decode and as many others make stacks, so that the next series is decoded meanwhile. A slow
    series does not block others. The threads end with the program, even if one of them hangs.


    Args:
        series: patient and series ids.
        jobs: threads that decode.
    """

    def __init__(self, source: StackSource, series: Sequence[tuple[str, str]], jobs: int = 1) -> None:
        self.left = len(series)
        """number of series that are not yet returned"""
        self._source, self._jobs = source, jobs
        self._waiting: Queue[tuple[str, str] | None] = Queue()
        self._decoded: Queue[tuple[tuple[str, str], Any, float] | None] = Queue()
        self._done: Queue[LoadedSeries] = Queue()
        self._slots = threading.Semaphore(jobs + AHEAD)  # limits the number of series in memory
        self._stopped = threading.Event()
        for key in series:
            self._waiting.put(key)
        for _ in range(jobs):
            threading.Thread(target=self._decode_all, daemon=True).start()
            threading.Thread(target=self._make_stacks, daemon=True).start()

    def read(self, budget: TimeBudget) -> Iterator[LoadedSeries]:
        """Yield each series when it is ready; failures caused by the machine are retried after all others.

        Raises:
            RunEnds: the time is over, or nothing could be read for long.
        """
        attempts, heard = Counter[tuple[str, str]](), time.monotonic()
        while self.left:
            budget.check()
            try:
                series = self._done.get(timeout=min(WAIT_S, max(budget.left_s, 0.01)))
            except Empty:
                if time.monotonic() - heard > STUCK_S:
                    raise RunEnds(f"no series could be read for {STUCK_S / 60:.0f} minutes") from None
                continue
            self._slots.release()
            attempts[series.key] += 1
            if series.is_temporary and attempts[series.key] < ATTEMPTS:
                self._waiting.put(series.key)
            else:
                self.left -= 1
                yield series
            heard = time.monotonic()  # not before: predicting may take long

    def stop(self) -> None:
        """Start no further series, and let the threads end."""
        self._stopped.set()
        self._slots.release(self._jobs)
        for _ in range(self._jobs):
            self._waiting.put(None)
            self._decoded.put(None)

    def _decode_all(self) -> None:
        while True:
            self._slots.acquire()
            key = self._waiting.get()
            if self._stopped.is_set():
                return
            started = time.perf_counter()
            try:
                decoded = self._source.decode(*key)
            except BaseException as error:
                failed = _unread_series(key, error)
                if failed.is_temporary:
                    time.sleep(PAUSE_S)
                self._done.put(failed)
            else:
                self._decoded.put((key, decoded, time.perf_counter() - started))

    def _make_stacks(self) -> None:
        while True:
            item = self._decoded.get()
            if self._stopped.is_set():
                return
            (key, decoded, decode_s), started = item, time.perf_counter()
            try:
                made = self._source.make_stacks(decoded)
            except BaseException as error:
                self._done.put(_unread_series(key, error))
            else:
                read_s = decode_s + time.perf_counter() - started
                self._done.put(LoadedSeries(key, *made, read_s=read_s))


def _unread_series(key: tuple[str, str], error: BaseException) -> LoadedSeries:
    is_temporary = isinstance(error, UnreachableSeries | ChildNotStarted | MemoryError | OSError)
    return LoadedSeries(key, reason=describe_error(error), is_temporary=is_temporary)


def _summarise(report: pd.DataFrame, why_early: str, output: Path) -> None:
    """Print a summary of the run.

    Raises:
        UserError: every patient got the prior although there was time.
    """
    counts = report.status.value_counts()
    say(f"series: {', '.join(f'{counts[status]} {status}' for status in counts.index if status != 'prior')}")
    if "doubtful" in counts:
        warn(f"{counts['doubtful']} series were predicted from doubtful images, see report.csv")
    if "prior" in counts:
        warn(f"{counts['prior']} patients got the prior, see report.csv")
    if why_early:
        warn(f"the run ended early ({why_early}): the submission is complete, with what was known by then")
    say(f"submission: {output}")
    if not why_early and not set(PREDICTED) & set(counts.index):
        # reasons of series are more specific than those of patients, which are used without series
        reason = report.reason[(report.status != "prior") | (len(counts) == 1)].max()
        raise UserError(f"no series could be predicted, every patient got the prior: {reason}")
