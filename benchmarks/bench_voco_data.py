"""Speed of the samples that pre-training reads, and time and memory of an index of 160,000 series.

python benchmarks/bench_voco_data.py --json voco_data.json
python benchmarks/bench_voco_data.py --quick

Samples of the presets, without changes of appearance, of one series of 318 slices, the competition's mean: a
phantom prepared at 256 px in three windows, of which plus uses all and the others one. Files are in the page
cache. On one thread, in turn in every round:

    png      a sample without --cache
    cache    the same sample with --cache
    decode   decoding the slices that the first decodes, and nothing else: its limit
    make     making the cache of the series

Times are on the processor, medians over the rounds; a ratio is the median of the rounds' own ratios. The
index is opened in a new process each time: memory is what the process takes more than after its imports, with
the table of ids and the order of an epoch made once.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import pandas as pd
from harness import BenchOptions, in_fresh_process, median_ratio, read_preset, resident_bytes, run_main
from phantom_files import link_prepared, prepare_phantom

from src.core.errors import UserError
from src.core.log import format_table, say
from src.data.png import decode_png
from src.data.prepared import slice_name
from src.voco.dataset import VocoDataset, open_dataset
from src.voco.options import VocoOptions
from src.voco.order import VolumeOrder

PRESETS = ("v1", "v2", "plus", "3d", "large", "plus_small")
LIMITS = "plus: png 12 ms, cache 2 ms, make 150 ms, 80 GB; v2: cache 6 ms, 80 GB"
SERIES, SLICES = 4711, 318  # of the competition, and on the average of each
ROWS = (1_600, 160_000)
OPEN_LIMIT_S, ADDED_LIMIT_MB = 10, 300  # of the larger index
LINKED = 20  # series of the index that have images


def main(options: BenchOptions) -> dict[str, Any]:
    if not resident_bytes("VmRSS"):
        raise UserError("memory is read from /proc, which only Linux has")
    with tempfile.TemporaryDirectory() as scratch:
        prepared, mean_kb = prepare_phantom(Path(scratch), options.quick)
        say(f"slices of {mean_kb:.0f} KB on the average")
        samples = time_samples(prepared, Path(scratch), rounds=3 if options.quick else 15)
        index = time_index(prepared, Path(scratch), rounds=1 if options.quick else 3)
    return {"mean_slice_kb": mean_kb, "samples": samples, "index": index}


def time_samples(prepared: Path, scratch: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Figures of every preset: ms per sample and per series, and sizes of the cache."""
    folder, cache = link_prepared(prepared, scratch / "mean", 1, SLICES).folder, scratch / "cache"
    figures = {}
    for name in PRESETS:
        options = replace(read_preset(VocoOptions, f"voco/{name}", "--data", folder), appearance=0.0)
        png, cached = open_dataset(options), open_dataset(replace(options, cache=cache))
        ways: dict[str, Callable[[int], Any]] = {
            "png": lambda epoch, dataset=png: dataset[epoch, 0],
            "cache": lambda epoch, dataset=cached: dataset[epoch, 0],
        }
        taken: dict[str, list[float]] = {way: [] for way in (*ways, "decode", "make")}
        png[0, 0]  # finds the foreground
        slices, size = [], 0
        for epoch in range(rounds):
            shutil.rmtree(cache, ignore_errors=True)
            made_and_read_ms = timed_ms(ways["cache"], epoch)
            for way, work in ways.items():
                taken[way].append(timed_ms(work, epoch))
            taken["make"].append(made_and_read_ms - taken["cache"][-1])
            content = read_used(png, epoch)
            taken["decode"].append(timed_ms(lambda _, content=content: decode(content), epoch))
            slices.append(len(content))
            size = sum(path.stat().st_size for path in cache.rglob("*.npy"))
        figures[name] = {
            "slices": median(slices),
            **{f"{way} ms": median(times) for way, times in taken.items()},
            "png / decode": median_ratio(taken["png"], taken["decode"]),
            "MB": size / 1e6,
            "GB": size * SERIES / 1e9,
        }
    say(f"\na sample\n{format_table([{'': name, **row} for name, row in figures.items()], 2)}")
    say(f"GB are those of the competition's {SERIES} series; limits: {LIMITS}")
    return figures


def read_used(dataset: VocoDataset, epoch: int) -> list[bytes]:
    """Content of the files that a sample of series 0 decodes."""
    read, used = dataset.planes.read, []

    def watched(row: int, series: Any, slices: np.ndarray) -> Any:
        used.extend(series.folder / slice_name(index) for index in np.unique(slices))
        return read(row, series, slices)

    dataset.planes.read = watched
    dataset[epoch, 0]
    dataset.planes.read = read
    return [path.read_bytes() for path in used]


def decode(content: list[bytes]) -> None:
    for png in content:
        decode_png(png)


def time_index(prepared: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    """Medians over new processes, by number of rows, and the ratio of a sample from the larger index."""
    folders = {rows: write_index(prepared, scratch / f"index_{rows}", rows) for rows in ROWS}
    taken = [
        {rows: in_fresh_process(index_figures, folder) for rows, folder in folders.items()}
        for _ in range(rounds)
    ]
    names = taken[0][ROWS[0]]
    table = [
        {"series": rows, **{name: median(run[rows][name] for run in taken) for name in names}}
        for rows in ROWS
    ]
    small, large = ROWS
    ratio = median(run[large]["sample ms"] / run[small]["sample ms"] for run in taken)
    say(f"\nan index, v2 samples\n{format_table(table, 2)}\na sample of the larger one takes x {ratio:.2f}")
    say(f"{large} series are to open in {OPEN_LIMIT_S} s and to add at most {ADDED_LIMIT_MB} MB")
    return {"rows": table, "sample ratio": ratio}


def write_index(prepared: Path, folder: Path, rows: int) -> Path:
    """A prepared set of `rows` series, a few of which, evenly spread, are links to the one of `prepared`."""
    folder.mkdir()
    shutil.copy(prepared / "dataset.json", folder)
    row = pd.read_csv(prepared / "series.csv", dtype=str).loc[[0] * rows].reset_index(drop=True)
    images = prepared / "images" / row["patient_id"][0] / row["series_id"][0]
    row["patient_id"] = (100_000 + np.arange(rows) // 2).astype(str)
    row["series_id"] = (1_000_000 + np.arange(rows)).astype(str)
    row.to_csv(folder / "series.csv", index=False)
    for number in linked_rows(rows):
        patient = folder / "images" / row["patient_id"][number]
        patient.mkdir(parents=True)
        (patient / row["series_id"][number]).symlink_to(images, target_is_directory=True)
    return folder


def linked_rows(rows: int) -> range:
    return range(0, rows, rows // LINKED)


def index_figures(folder: Path) -> dict[str, float]:
    """What opening and using an index takes, in a process that has imported this file and done nothing."""
    cv2.setNumThreads(1)
    options = VocoOptions(data=(folder,), output=Path("unused"))
    before = resident_bytes("VmRSS")
    start = time.perf_counter()
    dataset = open_dataset(options)
    open_s = time.perf_counter() - start
    dataset.index.table().groupby(["set", "patient_id"]).ngroup()  # as training numbers the patients
    order = iter(
        VolumeOrder(len(dataset), options.batch, seed=0, first_step=0, steps=200, sets=dataset.index.sets)
    )
    next(order)  # draws the order of the epoch
    peak_mb = (resident_bytes("VmHWM") - before) / 1e6
    dataset[0, 0]
    sample_ms = median(timed_ms(lambda row: dataset[0, row], row) for row in linked_rows(len(dataset)))
    return {"open s": open_s, "peak MB": peak_mb, "sample ms": sample_ms}


def timed_ms(work: Callable[[int], Any], argument: int) -> float:
    """Time on the processor: what else runs on the machine disturbs it less than the time of the clock."""
    start = time.process_time()
    work(argument)
    return 1e3 * (time.process_time() - start)


if __name__ == "__main__":
    run_main(main, BenchOptions, threads=1)
