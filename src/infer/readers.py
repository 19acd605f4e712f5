"""Series read in threads of their own while the models look at others."""

import threading
from collections.abc import Callable, Iterable
from queue import Empty, Queue
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Results that may lie ready or be under way, besides one for each thread."""


class ReadAhead(Generic[Item, Result]):
    """Calls `read` with every item, in order, in several threads; gives the results as they come.

    One slow item does not hold up the others. The threads end with the program: one that is stuck does not
    keep it alive.

    Args:
        read: must not raise; what it raises all the same is raised by `take`.
        jobs: threads.
    """

    def __init__(self, read: Callable[[Item], Result], items: Iterable[Item], jobs: int = 1) -> None:
        self._read, self._jobs = read, jobs
        self._waiting: Queue[Item] = Queue()
        self._done: Queue[tuple[Result | None, BaseException | None]] = Queue()
        self._slots = threading.Semaphore(jobs + AHEAD)  # bounds what is in memory
        self._stopped = threading.Event()
        self.left = 0
        """results that are still to be taken"""
        for item in items:
            self.add(item)
        for _ in range(jobs):
            threading.Thread(target=self._work, daemon=True).start()

    def add(self, item: Item) -> None:
        """Read this as well, after all others."""
        self.left += 1
        self._waiting.put(item)

    def take(self, timeout_s: float) -> Result | None:
        """The next result that is there, or None where none came in time."""
        try:
            result, error = self._done.get(timeout=timeout_s)
        except Empty:
            return None
        self.left -= 1
        self._slots.release()
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        """Begin no further item, and let the threads end."""
        self._stopped.set()
        self._slots.release(self._jobs)
        for _ in range(self._jobs):
            self._waiting.put(None)

    def _work(self) -> None:
        while True:
            self._slots.acquire()
            item = self._waiting.get()
            if self._stopped.is_set():
                return
            try:
                self._done.put((self._read(item), None))
            except BaseException as error:
                self._done.put((None, error))
