"""How a run ends before all is done: asked to by a signal, out of time, or stuck."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from src.core.log import warn

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP"))


class RunEnds(Exception):
    """The run has to end now, in the middle of a series; the message says why."""


class StopRequest:
    """Whether the run was asked to end: by SIGTERM, by Ctrl-C, or by its terminal's end."""

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
    """Note a signal inside the block instead of dying of it; a second Ctrl-C interrupts.

    What the process ignores, as SIGHUP under nohup, it goes on to ignore.
    """
    request = StopRequest()

    def note(number: int, _: object) -> None:
        if request.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = number

    if threading.current_thread() is not threading.main_thread():  # only that one may
        yield request
        return
    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def last_resort(after_s: float, save: Callable[[], None]) -> Iterator[None]:
    """Where the block still runs after that long, save and end the process: a GPU may never answer.

    Args:
        after_s: infinity waits for ever.
        save: may run while the block does.
    """
    is_done = threading.Event()

    def watch() -> None:
        if not is_done.wait(min(after_s, threading.TIMEOUT_MAX)):
            warn("the run is stuck beyond its time: it ends with what it has")
            try:
                save()
            finally:
                os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_done.set()
