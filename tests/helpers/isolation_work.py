"""What the children of the tests run: a child can import it."""

import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.core.isolation import Report


def plainly(function: Callable[..., Any], *args: Any, report: Report, **kwargs: Any) -> Any:
    """Run a function that makes no reports."""
    return function(*args, **kwargs)


def crash(how: str, step: str = "slice 7", *, report: Report) -> None:
    report("slice 6")
    report(step)
    if how == "abort":
        os.abort()
    elif how == "exit":
        os._exit(11)
    else:
        os.kill(os.getpid(), signal.SIGSEGV)


def work_slowly(steps: int, step_s: float, report: Report) -> str:
    for step in range(steps):
        report(f"slice {step}")
        time.sleep(step_s)
    return "done"


def sleep_with_the_lock_held(seconds: float = 60, *, report: Report) -> None:
    """Hang as a C decoder can: no other Python thread of the process runs."""
    report("hanging")
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def stop_itself(report: Report) -> None:
    report("stopping")
    os.kill(os.getpid(), signal.SIGSTOP)


def hold(lock: Path, then: str, report: Report) -> None:
    """Hold a file lock, which the system gives back when the process ends, zombie or not."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lock.with_suffix(".held").touch()
        sleep_with_the_lock_held(report=report) if then == "hang" else time.sleep(60)


def fail(error: BaseException, report: Report) -> None:
    raise error


class NeedsTwo(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def fail_unpicklably(report: Report) -> None:
    raise NeedsTwo("this", "that")


def make_noise(report: Report) -> str:
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        print("noise " * 50_000, file=stream, flush=True)
        os.write(descriptor, b"noise")
    return "done"


def fork_and_exit(pid_file: Path, report: Report) -> None:
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    pid_file.write_text(str(pid))
    os._exit(11)
