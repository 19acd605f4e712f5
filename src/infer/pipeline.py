"""Series after series: read ahead in threads, predicted here, until all are done or the run has to end."""

import time
from collections.abc import Callable, Sequence

from src.core.errors import UserError
from src.core.log import progress, warn
from src.infer.budget import Pace, StopRequest
from src.infer.careful import CarefulNetworks
from src.infer.readers import ReadAhead
from src.infer.results import Results
from src.infer.sources import ReadSeries, StackSource, describe_error, read_or_tell

WAIT_S = 0.5
"""For a series, before looking at the clock and for signals again."""

SAVE_EVERY_S = 600.0


def order_series(source: StackSource, patient_ids: Sequence[str]) -> list[tuple[str, str]]:
    """Patient and series ids: the first series of every patient, then the second ones.

    So a run that has to end early knows something of as many patients as it can.

    Raises:
        UserError: the source has no series of any patient.
    """
    ranked = [
        (rank, patient_id, series_id)
        for patient_id in patient_ids
        for rank, series_id in enumerate(source.series_of(patient_id))
    ]
    if not ranked:
        raise UserError(f"no series of any of the {len(patient_ids)} patients is in the input")
    ranked.sort(key=lambda item: item[0])  # stable: patients keep their order
    return [(patient_id, series_id) for _, patient_id, series_id in ranked]


def predict_series(
    source: StackSource,
    networks: CarefulNetworks,
    series: Sequence[tuple[str, str]],
    results: Results,
    pace: Pace,
    stop: StopRequest,
    save: Callable[[], None],
) -> str:
    """Predict the series into `results`, until all are done or the run has to end.

    A series that cannot be read or predicted is skipped, whatever the reason.

    Args:
        save: called from time to time, so that not even a killed run leaves nothing.

    Returns:
        Why the run ended early; empty if it did not.
    """
    reader = ReadAhead(lambda ids: read_or_tell(source, *ids), series, pace.jobs)
    saved = time.monotonic()
    try:
        with progress(None, len(series), "series") as bar:
            while reader.left:
                if stop.name:
                    return stop.name
                if pace.is_over:
                    return "the time of --max-hours is spent"
                read = reader.take(min(WAIT_S, max(pace.left_s, 0.01)))
                if read is None:
                    continue
                _predict(read, networks, results, pace)
                bar.update()
                if time.monotonic() - saved >= SAVE_EVERY_S:
                    save()
                    saved = time.monotonic()
    finally:
        reader.stop()
    return ""


def _predict(series: ReadSeries, networks: CarefulNetworks, results: Results, pace: Pace) -> None:
    key, answer, started = (series.patient_id, series.series_id), None, time.perf_counter()
    if series.reason:
        results.skip(key, series.reason)
        pace.note(series, None, 0.0)
        return
    thinned = pace.thinned
    try:
        answer = networks.predict(series, pace.share)
    # One series must not end a submission: whatever it is, the report tells it.
    except Exception as error:
        reason = describe_error(error)
        warn(f"{'/'.join(key)} could not be predicted: {reason}")
        results.skip(key, reason)
    else:
        results.add(key, answer.probabilities, "thinned" if thinned else "ok", thinned)
    pace.note(series, answer, time.perf_counter() - started)
