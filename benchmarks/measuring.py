"""Seconds and peak memory of work on this machine's device, for the benchmarks of training steps."""

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import torch

MMAP_FROM_BYTES = 64 * 1024


def device_name() -> str:
    """The GPU's name, or `CPU` with the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} thread(s)"


def alternate(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every work, `repeats` times, one after the other in turn: a slow moment costs each a try.

    Every work runs once before the clock does.
    """
    for work in works.values():
        seconds_of(work)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(seconds_of(work))
    return seconds


def seconds_of(work: Callable[[], Any]) -> float:
    """Seconds of one run, until the device has finished."""
    _wait_for_device()
    start = time.perf_counter()
    work()
    _wait_for_device()
    return time.perf_counter() - start


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `function` in a process of its own, with as many threads as this one."""
    spawn, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    with ProcessPoolExecutor(1, spawn, initializer=begin_process, initargs=(threads,)) as pool:
        return pool.submit(function, *arguments).result()


def peak_bytes(build: Callable[..., Callable[[], Any]], *arguments: Any, runs: int = 1) -> int:
    """Peak memory of `build(*arguments)` and `runs` runs of the work that it returns, in its own process.

    On a GPU what torch has allocated; on a CPU the peak of resident memory above what the imports took, with
    an allocator that gives freed blocks back at once.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(MMAP_FROM_BYTES)  # read by the new process as it starts
    try:
        return in_fresh_process(_peak_of, build, arguments, runs)
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]


def begin_process(threads: int) -> None:
    """What a process of a pool does first: take its share of the cores, and end with its parent.

    A pool's processes would otherwise go on with the work that waits after the program itself was killed.
    """
    torch.set_num_threads(threads)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # from a thread nothing else ends the process


def _peak_of(build: Callable[..., Callable[[], Any]], arguments: tuple, runs: int) -> int:
    on_gpu = torch.cuda.is_available()
    before = 0 if on_gpu else _resident("VmRSS")
    work = build(*arguments)
    for _ in range(runs):
        work()
    _wait_for_device()
    return torch.cuda.max_memory_allocated() if on_gpu else _resident("VmHWM") - before


def resident_with_children() -> int:
    """Bytes that this process and its children hold now."""
    threads = Path("/proc/self/task").iterdir()
    children = {pid for thread in threads for pid in (thread / "children").read_text().split()}
    return sum(_resident("VmRSS", process) for process in ("self", *children))


def _resident(field: str, process: str = "self") -> int:
    """Bytes of a field of a process's status: VmRSS now, VmHWM its peak."""
    status = Path("/proc") / process / "status"
    for line in status.read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{status} has no {field}")


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
