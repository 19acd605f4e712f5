"""Series after series: read ahead in threads, predicted here, until all are done or the run has to end."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from src.core.log import progress, warn
from src.infer.budget import Pace
from src.infer.fallback import CarefulNetworks
from src.infer.read_ahead import ReadAhead
from src.infer.results import Results
from src.infer.sources import ReadSeries, StackSource, describe_error, unread_series
from src.infer.stopping import RunEnds, StopRequest

WAIT_S = 0.5
"""For a series, before looking at the clock and for signals again."""

STUCK_S = 1800.0
"""Without a series, after which reading is given up: no file system comes back after that long."""

SAVE_EVERY_S = 600.0
TRIES, PAUSE_S = 3, 10.0
"""To read a series that fails for a reason of the machine, and the pause after such a failure."""


def order_series(source: StackSource, patient_ids: Sequence[str]) -> list[tuple[str, str]]:
    """Patient and series ids: the first series of every patient, then the second ones.

    So a run that has to end early knows something of as many patients as it can.
    """
    ranked = [
        (rank, patient_id, series_id)
        for patient_id in patient_ids
        for rank, series_id in enumerate(source.series_of(patient_id))
    ]
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
    jobs: int = 1,
) -> str:
    """Predict the series into `results`, until all are done or the run has to end.

    A series that cannot be read or predicted is skipped, whatever the reason.

    Args:
        save: called from time to time, so that not even a killed run leaves nothing; it may fail.
        jobs: threads that read.

    Returns:
        Why the run ended early; empty if it did not.
    """

    def read(ids: tuple[str, str]) -> _HalfRead:
        try:
            return _HalfRead(ids, source.decode(*ids))
        # One series must not end a submission: whatever it is, the report tells it.
        except Exception as error:
            found = unread_series(*ids, error)
            if found.is_passing:
                time.sleep(PAUSE_S)
            return _HalfRead(ids, lambda: found)

    def finish(half: _HalfRead) -> ReadSeries:
        try:
            return half.cut()
        except Exception as error:
            return unread_series(*half.ids, error)

    def check() -> None:
        if stop.name:
            raise RunEnds(stop.name)
        if pace.is_over:
            raise RunEnds("the time of --max-hours is spent")

    reader, tries = ReadAhead(read, finish, series, jobs), Counter[tuple[str, str]]()
    saved = heard = time.monotonic()
    try:
        with progress(None, len(series), "series") as bar:
            while reader.left:
                check()
                found = reader.take(min(WAIT_S, max(pace.left_s, 0.01)))
                if found is None:
                    if time.monotonic() - heard > STUCK_S:
                        return f"no series could be read for {STUCK_S / 60:.0f} minutes"
                    continue
                ids = (found.patient_id, found.series_id)
                tries[ids] += 1
                if found.is_passing and tries[ids] < TRIES:
                    reader.add(ids)
                else:
                    _predict(found, networks, results, pace, check)
                    bar.update()
                heard = time.monotonic()  # not before: predicting may take long
                if time.monotonic() - saved >= SAVE_EVERY_S:
                    _try(save)
                    saved = time.monotonic()
    except RunEnds as end:
        return str(end)
    finally:
        reader.stop()
    return ""


class _HalfRead(NamedTuple):
    """A series whose files are read."""

    ids: tuple[str, str]
    cut: Callable[[], ReadSeries]


def _predict(
    series: ReadSeries,
    networks: CarefulNetworks,
    results: Results,
    pace: Pace,
    check: Callable[[], None],
) -> None:
    key, prediction = (series.patient_id, series.series_id), None
    if series.reason:
        results.skip(key, series.reason)
        pace.note(series, None)
        return
    thinned = pace.thinned
    try:
        prediction = networks.predict(series, pace.share, check)
    except RunEnds:
        raise
    except Exception as error:  # as above
        reason = describe_error(error)
        warn(f"{'/'.join(key)} could not be predicted: {reason}")
        results.skip(key, reason)
    else:
        reason = "; ".join(part for part in (thinned, prediction.note) if part)
        results.add(key, prediction.probabilities, "thinned" if thinned else "ok", reason)
    pace.note(series, prediction)


def _try(save: Callable[[], None]) -> None:
    try:
        save()
    except Exception as error:  # a full disk, say: there may be room again at the end
        warn(f"what is known so far could not be saved: {describe_error(error)}")
