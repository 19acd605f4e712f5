"""Speed of preparing DICOM files, compared with a conventional script and with decoding and encoding alone.

python benchmarks/bench_prepare.py --json prepare.json
python benchmarks/bench_prepare.py --quick
python benchmarks/bench_prepare.py --memory

From 512 x 512 CT slices of 16 bits to 256 px PNG of three windows, all with the same PNG settings:

    conventional   pydicom, float rescale and windows, cv2.resize, cv2.imencode, write; no order, no crop
    kit            what a worker of prepare_data.py does with a series: headers, order, body crop, decoding,
                   resizing, windows, PNG, tables, in its child process
    limit          dicomsdl decoding every file, and cv2 encoding the very images that the kit writes: no more

Files are in a folder in memory where there is one (/dev/shm). Conventional, kit with one worker, and limit
run on one CPU, two workers on two, in turn in every round. Times are medians over the rounds, ratios the
medians of the rounds' own ratios. The check that a series is a CT is given in percent of the kit's time.
What a run pays once is printed apart.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from threading import Barrier
from typing import Any

import cv2
import dicomsdl
import numpy as np
import pydicom
from harness import BenchOptions, median_ratio, process_tree, resident_bytes, run_main, seconds_of, time_each
from phantom_files import open_series, phantom_series, write_series

from src.core.config import ROOT
from src.core.errors import UserError
from src.core.log import format_table, progress, say
from src.ct.plausibility import check_series
from src.ct.series import SeriesSource
from src.ct.storage import LocalFolder
from src.ct.windows import apply_windows, get_windows
from src.data.png import PNG_COLOUR, encode_png, read_png
from src.data.prepared import image_folder
from src.data.selection import even_indices
from src.prepare.grey_slices import body_crop, examine
from src.prepare.run import prepare_all, prepare_or_skip
from src.prepare.sources import FoundSources
from src.prepare.write_series import PrepareJob

SYNTAXES = ("RLE", "uncompressed")
WINDOWS = get_windows(("soft", "organ", "wide"))
SIZE = 256
N_SERIES = 2  # both of them are prepared in a round, so that two workers have one each
MEAN_SLICES = 317  # a series of the competition
LONGEST_SLICES = 1727
MEMORY_LIMIT_MB = 600
ROOM_BYTES = 2 << 30  # for the files of the timings


@dataclass(frozen=True, kw_only=True)
class PrepareBenchOptions(BenchOptions):
    memory: bool = False
    """peak memory over the longest series there is, 1,727 slices of 1024 x 1024, instead of the timings"""


def main(options: PrepareBenchOptions) -> dict[str, Any]:
    in_memory = Path("/dev/shm")
    use_memory = not options.memory and in_memory.is_dir() and shutil.disk_usage(in_memory).free > ROOM_BYTES
    with tempfile.TemporaryDirectory(dir=in_memory if use_memory else None) as scratch:
        if options.memory:
            return {"memory": peak_memory(Path(scratch), 100 if options.quick else LONGEST_SLICES)}
        return timings(Path(scratch), options.quick)


def timings(scratch: Path, quick: bool) -> dict[str, Any]:
    """`speed` and `stages` in ms per slice by syntax, and `start_s`, the time of a small run."""
    anatomy = phantom_series(scratch / "phantom", spacing_z_mm=8.0 if quick else 4.0)
    slices, pixel_mm = [anatomy.read(index) for index in range(len(anatomy.z_mm))], anatomy.pixel_mm[0]
    n_slices, rounds = (48, 2) if quick else (MEAN_SLICES, 7)
    say(f"{N_SERIES} series of {n_slices} slices, {len(slices)} of them different; {rounds} rounds")
    small = SeriesSource(
        "0", "0", LocalFolder(write_series(scratch / "small", slices[:2], 2, pixel_mm, "RLE"))
    )
    job = PrepareJob(scratch / "out", WINDOWS, SIZE)
    with pinned(1):
        start_s = timed(lambda: prepare_all(FoundSources("benchmark", [small]), job), job.output)
    say(f"a run of one series of two slices: {start_s:.2f} s, most of it the start of the child process")
    speed, stages = {}, {}
    for syntax in SYNTAXES:
        folders = [scratch / syntax / str(number) for number in range(N_SERIES)]
        for folder in folders:
            write_series(folder, slices, n_slices, pixel_mm, syntax)
        os.sync()  # or the files would go to disk while others are timed
        with pinned(1):
            stages[syntax] = stage_times(folders[0], scratch / f"stages {syntax}")
        speed[syntax] = compare(folders, small, job, rounds)
        speed[syntax]["check, %"] = 100 * stages[syntax]["check"] / speed[syntax]["kit"]
        shutil.rmtree(scratch / syntax)
    say("\nms per slice, and ratios of speed")
    say(format_table([{"": syntax, **row} for syntax, row in speed.items()], 2))
    say(f"\nstages, ms per slice\n{format_table([{'': s, **row} for s, row in stages.items()], 3)}")
    return {"speed": speed, "stages": stages, "start_s": start_s}


def compare(folders: list[Path], small: SeriesSource, job: PrepareJob, rounds: int) -> dict[str, float]:
    """Medians over rounds: ms per slice of every way, and ratios of speed."""
    sources = [SeriesSource("1", folder.name, LocalFolder(folder)) for folder in folders]
    output = job.output
    prepare_all(FoundSources("benchmark", sources[:1]), job)
    written = sorted(image_folder(output, "1", sources[0].series_id).glob("*.png"))
    images = [read_png(path) for path in written]
    shutil.rmtree(output)
    paths = sorted(folders[0].iterdir())
    n_slices, n_all = len(paths), len(paths) * len(folders)
    ways = ("conventional", "kit", "limit", "kit, 2 workers")
    taken: dict[str, list[float]] = {way: [] for way in ways}  # ms per slice
    with warm_workers(1, small, job) as one, warm_workers(2, small, job) as two:
        for _ in progress(range(rounds), desc=folders[0].parent.name):
            with pinned(1):
                conventional_s = timed(lambda: conventional(paths, output), output) / n_slices
                kit_s = timed(lambda: prepare_with(one, sources, job), output) / n_all
                limit_s = timed(lambda: limit(paths, images)) / n_slices
            two_s = timed(lambda: prepare_with(two, sources, job), output) / n_all
            for way, seconds in zip(ways, (conventional_s, kit_s, limit_s, two_s), strict=True):
                taken[way].append(1e3 * seconds)
    return {
        **{way: median(times) for way, times in taken.items()},
        "kit / conventional": median_ratio(taken["conventional"], taken["kit"]),
        "kit / limit": median_ratio(taken["limit"], taken["kit"]),
        "2 workers / 1": median_ratio(taken["kit"], taken["kit, 2 workers"]),
    }


def conventional(paths: list[Path], output: Path) -> None:
    """The usual script, file by file."""
    output.mkdir()
    for path in paths:
        dataset = pydicom.dcmread(path)
        hu = dataset.pixel_array.astype(np.float32)
        hu = hu * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        channels = []
        for window in WINDOWS:
            low, high = window.centre_hu - window.width_hu / 2, window.centre_hu + window.width_hu / 2
            channels.append((np.clip(hu, low, high) - low) / (high - low) * 255)
        grey = cv2.resize(np.dstack(channels[::-1]), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        content = cv2.imencode(".png", grey.astype(np.uint8), PNG_COLOUR)[1]
        (output / f"{path.stem}.png").write_bytes(content)


def limit(paths: list[Path], images: list[np.ndarray]) -> None:
    """Decode every file and encode every image, and nothing else."""
    for path in paths:
        dataset = dicomsdl.open(str(path))
        info = dataset.getPixelDataInfo()
        stored = np.empty((info["Rows"], info["Cols"]), dtype=info["dtype"])
        dataset.copyFrameData(0, stored)
    for image in images:
        encode_png(image)


def prepare_with(threads: ThreadPoolExecutor, sources: list[SeriesSource], job: PrepareJob) -> None:
    """Prepare series as the threads of `prepare_all` do."""
    for outcome in threads.map(lambda source: prepare_or_skip(source, job), sources):
        if outcome["row"]["status"] != "ok":
            raise RuntimeError(outcome["row"]["reason"])


@contextmanager
def warm_workers(n_workers: int, small: SeriesSource, job: PrepareJob) -> Iterator[ThreadPoolExecutor]:
    """Yield threads on as many CPUs, each with a child process that has prepared `small`."""
    all_there = Barrier(n_workers)

    def start(number: int) -> None:
        all_there.wait()  # or one thread would take both
        prepare_or_skip(replace(small, series_id=str(number)), job)

    with ThreadPoolExecutor(n_workers) as threads:
        with pinned(n_workers):  # a thread, and a process, inherits the CPUs of the thread that starts it
            list(threads.map(start, range(n_workers)))
        shutil.rmtree(job.output)
        yield threads


def stage_times(folder: Path, scratch: Path) -> dict[str, float]:
    """Means in ms per slice of the kit's stages, run in this process; `scratch` takes the PNG."""
    scratch.mkdir()
    (series,), scan_s = time_each([folder], open_series)
    n_slices = len(series.z_mm)
    examined = examine(series)
    crop, decoded = examined.crop, examined.decoded
    indices = [int(index) for index in even_indices(n_slices, min(n_slices, 100))]
    seconds = {"headers": scan_s / n_slices}
    hu, seconds["decode"] = time_each(indices, series.read)
    once = {
        "check": lambda: check_series(series, lambda _: decoded.items()),
        "body box": lambda: body_crop(decoded.values(), series.pixel_mm, series.shape),
    }
    for stage, work in once.items():
        seconds[stage] = median(seconds_of(work) for _ in range(5)) / n_slices
    cut, seconds["resize"] = time_each(hu, lambda each: crop.resize(each, SIZE))
    grey, seconds["windows"] = time_each(cut, lambda each: apply_windows(each, WINDOWS))
    png, seconds["PNG"] = time_each(grey, encode_png)
    files = zip(indices, png, strict=True)
    _, seconds["write"] = time_each(files, lambda each: (scratch / f"{each[0]}.png").write_bytes(each[1]))
    return {stage: 1e3 * value for stage, value in seconds.items()}


def peak_memory(scratch: Path, n_slices: int) -> dict[str, float]:
    """Peak MB of `prepare_data.py --jobs 1` and of its child, over one RLE series of 1024 x 1024 slices."""
    if not resident_bytes("VmHWM"):
        raise UserError("--memory reads /proc, which only Linux has")
    anatomy = phantom_series(scratch / "phantom", spacing_z_mm=20.0)
    hu = anatomy.read(len(anatomy.z_mm) // 2)
    large = cv2.resize(hu, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    raw = scratch / "raw"
    write_series(raw / "train_images" / "1" / "2", [large], n_slices, anatomy.pixel_mm[0] / 2, "RLE")
    arguments = ["--input", str(raw), "--output", str(scratch / "out"), "--jobs", "1"]
    with subprocess.Popen([sys.executable, str(ROOT / "prepare_data.py"), *arguments]) as worker:
        peak_mb: dict[int, float] = {}
        while worker.poll() is None:
            for pid in process_tree(worker.pid):
                peak_mb[pid] = max(resident_bytes("VmHWM", pid) / 1e6, peak_mb.get(pid, 0.0))
            time.sleep(0.02)
    if worker.returncode != 0:
        raise RuntimeError(f"prepare_data.py ended with exit status {worker.returncode}")
    own = peak_mb.pop(worker.pid)
    child = max(peak_mb.values())
    figures = {"slices": n_slices, "worker MB": own, "child MB": child, "both MB": own + child}
    say(f"\npeak memory, at most {MEMORY_LIMIT_MB} MB\n{format_table([figures], digits=0)}")
    return figures


@contextmanager
def pinned(n_cpus: int) -> Iterator[None]:
    """Keep this thread, and what it starts meanwhile, to the first `n_cpus` CPUs that it may use."""
    if not hasattr(os, "sched_setaffinity"):  # macOS
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:n_cpus])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def timed(work: Callable[[], Any], output: Path | None = None) -> float:
    """Seconds that `work` takes; `output`, which it writes, is removed afterwards."""
    seconds = seconds_of(work)
    if output is not None:
        shutil.rmtree(output)
    return seconds


if __name__ == "__main__":
    run_main(main, PrepareBenchOptions, threads=1)
