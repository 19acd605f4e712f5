"""What all benchmarks share: options, how they run, seconds, peak memory and ratios.

A benchmark is a function that takes its options and returns figures. `run_main` reads the options, prints
the machine and, with --json, writes the figures beside machine, device, load and options.
"""

import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import cv2
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks import src after this module

from src.core.config import parse_options, plain_options
from src.core.errors import exit_on_user_error
from src.core.files import write_json
from src.core.log import say

Options = TypeVar("Options")

MMAP_FROM_BYTES = 64 * 1024
BUSY_LOAD = 0.5


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    quick: bool = False
    """small and few: to see that it works, not for figures"""
    json: Path | None = None
    """file for the figures"""


def run_main(main: Callable[[Any], dict[str, Any] | None], options: type, threads: int | None = None) -> None:
    """Run a benchmark as a script; a user's mistake ends in one line."""
    with exit_on_user_error():
        run_benchmark(main, options, threads=threads)


def run_benchmark(
    main: Callable[[Any], dict[str, Any] | None],
    options: type,
    argv: list[str] | None = None,
    threads: int | None = None,
) -> None:
    """Read the options of a benchmark, run it and write its figures.

    Args:
        main: takes the options and returns figures, or None where there is nothing to write.
        options: its dataclass; the docstring of the module of `main` is the text of --help.
        argv: arguments, by default those of the process.
        threads: of torch and OpenCV; by default as many as they take.
    """
    module = sys.modules[main.__module__]
    given = parse_options(options, argv, prog=Path(module.__file__).name, description=module.__doc__)
    if threads is not None:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
    load = os.getloadavg()[0]
    say(f"{device_name()}; {machine()}; load {load:.1f}" + (": other work slows it" * (load > BUSY_LOAD)))
    figures = main(given)
    if given.json and figures is not None:
        about = {"machine": machine(), "device": device_name(), "load": load}
        write_json(about | {"options": plain_options(given)} | figures, given.json)


def machine() -> str:
    """The machine, as far as a table of timings needs it."""
    python = f"Python {platform.python_version()}"
    return f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}, {python}"


def device_name() -> str:
    """The GPU's name, or `CPU` with the number of torch's threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} thread(s)"


def read_preset(options: type[Options], preset: str, *arguments: str | Path) -> Options:
    """A preset as its script would read it.

    Args:
        options: the script's dataclass.
        preset: path of the file, or its name in configs/, as "voco/plus".
        arguments: further ones of the command line; --output need not be among them.
    """
    path = preset if preset.endswith(".yaml") else f"configs/{preset}.yaml"
    words = ["--config", path, "--output", "unused", *map(str, arguments)]
    return parse_options(options, words, prog="", description="")


def alternate(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each work, `repeats` times in turn, so that a slow moment of the machine costs each one try.

    Each work runs once before it is timed.
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


def time_each(items: Iterable[Any], work: Callable[[Any], Any]) -> tuple[list[Any], float]:
    """What `work` gives for each item, and its mean seconds."""
    started_s = time.perf_counter()
    results = [work(item) for item in items]
    return results, (time.perf_counter() - started_s) / len(results)


def median_ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """Median of the ratios of neighbours in time: a machine that slows down halfway does not decide it."""
    return statistics.median(a / b for a, b in zip(times, base, strict=True))


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `function` in a new process, with as many threads as this one."""
    spawn, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    with ProcessPoolExecutor(1, spawn, initializer=begin_process, initargs=(threads,)) as pool:
        return pool.submit(function, *arguments).result()


def begin_process(threads: int) -> None:
    """Initialise a process of a pool: limit its threads, and end it with its parent.

    A pool's processes would otherwise go on with the work that waits after the program itself was killed.
    """
    torch.set_num_threads(threads)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # from a thread nothing else ends the process


def peak_bytes(build: Callable[..., Callable[[], Any]], *arguments: Any, runs: int = 1) -> int:
    """Peak memory of `build(*arguments)` and `runs` runs of the work that it returns, in a new process.

    On a GPU what torch has allocated; on a CPU the peak of resident memory above what the imports took, with
    an allocator that gives freed blocks back at once.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(MMAP_FROM_BYTES)  # read by the new process as it starts
    try:
        return in_fresh_process(_peak_of, build, arguments, runs)
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]


def _peak_of(build: Callable[..., Callable[[], Any]], arguments: tuple, runs: int) -> int:
    on_gpu = torch.cuda.is_available()
    before = 0 if on_gpu else resident_bytes("VmRSS")
    work = build(*arguments)
    for _ in range(runs):
        work()
    _wait_for_device()
    return torch.cuda.max_memory_allocated() if on_gpu else resident_bytes("VmHWM") - before


def resident_bytes(field: str, pid: int | None = None) -> int:
    """A field of a process's status: VmRSS is its memory now, VmHWM its peak; 0 once it has ended."""
    with suppress(OSError):
        status = Path(f"/proc/{pid or 'self'}/status")
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def process_tree(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # ended meanwhile
            for child in path.read_text().split():
                yield from process_tree(int(child))


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
