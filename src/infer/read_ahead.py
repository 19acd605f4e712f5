"""Series read in threads of their own while the models look at others."""

import threading
from collections.abc import Callable, Iterable
from queue import Empty, Queue
from typing import Generic, TypeVar

Item = TypeVar("Item")
Half = TypeVar("Half")
Result = TypeVar("Result")

AHEAD = 2
"""Results that may lie ready or be under way, besides one for each thread that reads."""


class ReadAhead(Generic[Item, Half, Result]):
    """Calls `read` with every item, in order, then `finish`; gives the results as they come.

    Several threads read, as many others finish, so that the next item is read meanwhile. One slow item does
    not hold up the others. The threads end with the program: one that is stuck does not keep it alive.

    Args:
        read, finish: must not raise; what they raise all the same is raised by `take`. `finish` is given what
            `read` returned.
        jobs: threads that read.
    """

    def __init__(
        self,
        read: Callable[[Item], Half],
        finish: Callable[[Half], Result],
        items: Iterable[Item],
        jobs: int = 1,
    ) -> None:
        self._jobs = jobs
        self._waiting: Queue[Item] = Queue()
        self._halves: Queue[Half] = Queue()
        self._done: Queue[tuple[Result | None, BaseException | None]] = Queue()
        self._slots = threading.Semaphore(jobs + AHEAD)  # bounds what is in memory
        self._stopped = threading.Event()
        self.left = 0
        """results that are still to be taken"""
        for item in items:
            self.add(item)
        for _ in range(jobs):
            threading.Thread(target=self._read_all, args=(read,), daemon=True).start()
            threading.Thread(target=self._finish_all, args=(finish,), daemon=True).start()

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
            self._halves.put(None)

    def _read_all(self, read: Callable[[Item], Half]) -> None:
        while True:
            self._slots.acquire()
            item = self._waiting.get()
            if self._stopped.is_set():
                return
            try:
                self._halves.put(read(item))
            except BaseException as error:
                self._done.put((None, error))

    def _finish_all(self, finish: Callable[[Half], Result]) -> None:
        while True:
            half = self._halves.get()
            if self._stopped.is_set():
                return
            try:
                self._done.put((finish(half), None))
            except BaseException as error:
                self._done.put((None, error))
