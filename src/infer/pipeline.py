"""Test images to submission.csv: series are read ahead in threads and predicted one by one."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from src.core.errors import UserError
from src.core.files import require_writable
from src.core.log import progress, say, warn
from src.infer.budget import RunEnds, TimeBudget, last_resort, stop_on_signals
from src.infer.ensemble import Ensemble
from src.infer.options import InferOptions
from src.infer.predictor import SeriesPredictor
from src.infer.read_ahead import ReadAhead
from src.infer.results import PREDICTED, Results, describe_error, read_sample
from src.infer.side_by_side import Outcome, predict_side_by_side
from src.infer.stack_sources import StackSource, open_source
from src.score.postprocess import post_of_runs

GRACE_S = 300.0
"""Seconds after --max-hours before a run that does not respond is ended."""

SAVE_EVERY_S = 600.0


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
        organs = {"segmenter": options.segmenter, "organ_spacing_mm": options.organ_spacing_mm}
        ensemble = Ensemble(options.models, post.weights, flips=options.tta, **organs)
        source = open_source(options.input, ensemble.stack_kinds, ensemble.segmenter)
        series = order_series(source, sample.patient_id)
        results = Results(series, sample, post, ensemble.prior, source.why_none)
        save = partial(results.save, options.output)
        save()  # writes the prior for every patient, so that a valid submission exists
        try:
            with last_resort(started + limit_s + GRACE_S - time.monotonic(), save):
                predictors = SeriesPredictor.on_all_gpus(ensemble, options.precision)
                device = predictors[0].ensemble.device
                budget = TimeBudget(
                    len(series),
                    ensemble.subsets,
                    limit_s,
                    started=started,
                    jobs=options.threads,
                    devices=len(predictors),
                    side_by_side=device.type != "cpu",
                    stop=stop,
                )
                passes = sum(ensemble.full.passes)
                devices = f"{len(predictors)} x {device.type}" if len(predictors) > 1 else f"{device}"
                say(f"{len(sample)} patients, {len(series)} series, {passes} forward passes each; {devices}")
                reader = ReadAhead(source, series, options.threads)
                why_early = predict_all(reader, predictors, results, budget, save)
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
    reader: ReadAhead,
    predictors: Sequence[SeriesPredictor],
    results: Results,
    budget: TimeBudget,
    save: Callable[[], None],
) -> str:
    """Predict series into `results` as they are read, until all are done or the run has to end.

    A series that cannot be read or predicted, for any reason, is skipped.

    Args:
        predictors: one for each device.
        save: called regularly, so that even a killed run leaves results; it may fail.

    Returns:
        Reason for an early end; empty if there was none.
    """
    saved = time.monotonic()
    try:
        for outcome in predict_side_by_side(
            progress(reader.read(budget), reader.left, "series"), predictors, budget
        ):
            _record(outcome, results, budget)
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


def _record(outcome: Outcome, results: Results, budget: TimeBudget) -> None:
    """Add what came of a series to the results, and its seconds to the budget."""
    series, _, thinned, prediction, error = outcome
    if series.reason:
        results.skip(series.key, series.reason)
    elif error is not None:
        reason = describe_error(error)
        warn(f"{'/'.join(series.key)} could not be predicted: {reason}")
        results.skip(series.key, reason)
    else:
        remarks = [remark.text for remark in series.remarks]
        reason = "; ".join(part for part in (*remarks, thinned, prediction.note) if part)
        is_doubtful = any(remark.doubtful for remark in series.remarks)
        status = "doubtful" if is_doubtful else "thinned" if thinned else "ok"
        results.add(series.key, prediction.probabilities, status, reason)
    budget.note(None if series.reason else series.read_s, prediction, outcome.subset)


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
