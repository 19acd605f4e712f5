"""Read the series of a run ahead of the models that predict them, in threads."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from queue import Empty, Queue
from typing import Any

from src.core.isolation import ChildNotStarted
from src.ct.series import UnreachableSeries
from src.infer.budget import RunEnds, TimeBudget
from src.infer.results import describe_error
from src.infer.stack_sources import LoadedSeries, StackSource

AHEAD = 2
"""Number of series that may be ready or in progress, besides one per decoding thread."""

WAIT_S = 0.5
"""Seconds to wait for a series before checking the clock and signals again."""

STUCK_S = 1800.0
"""Seconds without a series after which reading ends: no file system recovers after that long."""

ATTEMPTS, PAUSE_S = 3, 10.0
"""Attempts to read a series that fails because of the machine, and the pause between them."""


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
