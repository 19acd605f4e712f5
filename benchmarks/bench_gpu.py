"""What a training step takes on a GPU, what its readers leave of that, and the stages of infer.py.

    python benchmarks/bench_gpu.py --json gpu.json
    python benchmarks/bench_gpu.py --quick

Makes and prepares a phantom of 256 px in three windows, linked to 32 patients of 300 slices: their PNG are in
the page cache. Each training at the size of its preset (the classifier with the recipe's backbone), in its
fastest precision:

    bare networks   forward and backward of the networks of a step and the teacher's forward, on a batch in
                    memory
    step            what a training does with that batch: appearance, losses, monitors, clipping, optimiser,
                    moving average; with --execution eager, and with graph. One is the preset's default
    end to end      the same with processes that read, from PNG and from --cache: samples per second, and as a
                    share of what the step alone allows

Bare networks and the eager step take turns; a time is the median of some blocks of steps, of which each waits
for the device once. Kernels are the time in which a kernel or a copy runs (torch.profiler), busy is their
share of a step without the profiler. GB is what torch has allocated at its peak, reserved GB what it has
taken from the device: memory of graphs is in this alone. On a CPU, GB is the peak of the process.

The figures are written after each of them, the tables printed after each part. Every part runs in processes
of its own: an error is its line in the table, and the others go on. On a GPU, all parts take under 8 minutes;
end to end is measured in the order of importance while a part's share of them lasts. --quick is for machines
without a GPU.
"""

import json
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from bench_infer import link_series, time_stages, write_model
from gpu_trainings import Training, make_cache, open_training, prepare_steps, repeat, write_data
from harness import (
    BenchOptions,
    alternate,
    device_name,
    in_fresh_process,
    machine,
    median_ratio,
    resident_bytes,
    run_main,
    seconds_of,
)
from phantom_files import open_series, prepare_phantom, write_series
from recipe_steps import voco_options
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from src.core.config import Execution
from src.core.errors import UserError
from src.core.files import write_json
from src.core.log import format_table, say
from src.nn.training import TrainingLoop

Part = Literal["plus", "v2", "cnn_lstm", "organ_aware", "dual", "infer"]
END_S = 430
"""Seconds from the start by which all parts should be done."""


class Sizes(NamedTuple):
    series: int
    slices: int
    steps: int
    """of a block that is timed"""
    repeats: int
    """blocks"""
    reading_s: float
    """end to end, at least"""
    workers: tuple[int, ...]
    """numbers of them, the most important first"""
    test_series: int
    test_slices: int


FULL = Sizes(32, 300, steps=8, repeats=3, reading_s=3, workers=(8, 16, 4), test_series=8, test_slices=317)
QUICK = Sizes(16, 40, steps=1, repeats=3, reading_s=0, workers=(1, 2), test_series=3, test_slices=40)


@dataclass(frozen=True, kw_only=True)
class GpuBenchOptions(BenchOptions):
    parts: tuple[Part, ...] = get_args(Part)
    """trainings, and infer for the stages of infer.py; default: all"""


@dataclass(frozen=True)
class Results:
    """Tables in a file, to which all processes of the benchmark add rows, one process at a time."""

    path: Path

    def begin(self) -> None:
        about = {"machine": machine(), "device": device_name()}
        write_json(about | {"steps": [], "end to end": [], "infer": []}, self.path)

    def read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())

    def add(self, table: str, **row: Any) -> None:
        figures = self.read()
        figures[table].append(row)
        write_json(figures, self.path)

    def complete(self, **more: Any) -> None:
        """Add to the last row of the steps."""
        figures = self.read()
        figures["steps"][-1] |= more
        write_json(figures, self.path)

    def say_part(self, part: str) -> None:
        """Print the rows of a part."""
        for name in ("steps", "end to end", "infer"):
            if rows := [row for row in self.read()[name] if row["part"] == part]:
                say(f"\n{name}\n{format_table(rows, 3)}")


def main(options: GpuBenchOptions) -> dict[str, Any]:
    started = time.monotonic()
    if not (options.quick or torch.cuda.is_available()):
        raise UserError("there is no GPU: give --quick")
    sizes = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        results = Results(options.json or folder / "figures.json")
        results.begin()
        phantom, _ = prepare_phantom(folder, options.quick)
        write_data(phantom, folder / "set", sizes.series, sizes.slices)
        say(f"phantoms: {time.monotonic() - started:.0f} s")
        for number, part in enumerate(options.parts):
            begun = time.monotonic()
            deadline = begun + (END_S - (begun - started)) / (len(options.parts) - number)
            if part == "infer":
                attempt(results, "infer", measure_infer, part, folder, options.quick, results)
            else:
                measure_training(part, folder, options.quick, results, deadline)
            results.say_part(part)
            say(f"{part}: {time.monotonic() - begun:.0f} s")
        return {**results.read(), "seconds": time.monotonic() - started}


def attempt(results: Results, table: str, measure: Callable[..., None], part: str, *arguments: Any) -> bool:
    """Measure in a new process; an error becomes a row of a table. Return whether there was none."""
    try:
        in_fresh_process(measure, part, *arguments)
    except Exception as error:  # of any kind, the death of the process among them: other parts go on
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        results.add(table, part=part, note=f"{measure.__name__}: {type(error).__name__}: {reason[:150]}")
        return False
    return True


def measure_training(part: str, folder: Path, quick: bool, results: Results, deadline: float) -> None:
    """All rows of a training. A graph that cannot be captured leaves end to end to eager steps."""
    arguments = (part, folder, quick, results)
    attempt(results, "steps", measure_eager, *arguments)
    for table, execution in (("steps", "graph"), ("end to end", "eager")):
        if attempt(results, table, measure_reading, *arguments, execution, deadline):
            break


def measure_eager(part: str, folder: Path, quick: bool, results: Results) -> None:
    """Bare networks, and eager steps."""
    sizes = QUICK if quick else FULL
    training = open_training(part, folder / "set", "eager", quick)
    step, batch = prepare_steps(training)
    bare = training.build_bare(batch)
    works = {"bare": partial(repeat, bare, sizes.steps), "step": partial(repeat, step, sizes.steps)}
    seconds = alternate(works, sizes.repeats)
    bare_s, step_s = (statistics.median(seconds[name]) / sizes.steps for name in works)
    results.add("steps", part=part, step="bare networks", s=bare_s)
    bare = works = None  # its networks are no memory of the step
    ratio = median_ratio(seconds["step"], seconds["bare"])
    results.add("steps", **describe_step(training, part, "eager", step, step_s, ratio))
    results.complete(**profile_step(step, step_s))


def measure_reading(
    part: str, folder: Path, quick: bool, results: Results, execution: Execution, deadline: float
) -> None:
    """Steps with graphs, and end to end with them; where the training makes none, eagerly."""
    # loaders fork as in a script: by default a spawned process spawns, and each worker would import torch
    multiprocessing.set_start_method(None, force=True)
    sizes = QUICK if quick else FULL
    training = open_training(part, folder / "set", execution, quick)
    step, _ = prepare_steps(training)
    step_s = statistics.median(alternate({"": partial(repeat, step, sizes.steps)}, sizes.repeats)[""])
    step_s /= sizes.steps
    is_captured = training.is_captured()
    if is_captured:
        bare_s = [row["s"] for row in results.read()["steps"] if row["part"] == part and "s" in row][:1]
        ratio = step_s / bare_s[0] if bare_s else math.nan
        results.add("steps", **describe_step(training, part, "graph", step, step_s, ratio))
    elif execution == "graph":
        results.add("steps", part=part, step="step, graph", note="has no graph: runs eagerly")
    method = training.loop.method
    options, cached = method.options, make_cache(training, folder / "cache")
    sources = {"PNG": method.dataset, "cache": cached}
    for workers, source in product(sizes.workers, ("cache", "PNG")):
        if time.monotonic() > deadline:
            break
        method.options, method.dataset = replace(options, workers=workers), sources[source]
        batch_s = train_from_files(training.loop, workers, sizes)
        row = {"part": part, "execution": "graph" if is_captured else "eager"}
        row |= {"source": source, "workers": workers, "s": batch_s, "per s": training.samples / batch_s}
        results.add("end to end", **row, unit=training.unit, **{"of the step": step_s / batch_s})
    if is_captured:  # last, as steps after a profile may take longer
        results.complete(**profile_step(step, step_s))


def measure_infer(part: str, folder: Path, quick: bool, results: Results) -> None:
    """Stages of infer.py, with the backbone of the recipe."""
    sizes = QUICK if quick else FULL
    anatomy = open_series(next((folder / "raw" / "train_images").glob("*/*")))
    slices = [anatomy.read(index) for index in range(len(anatomy.z_mm))]
    series = write_series(folder / "series", slices, sizes.test_slices, anatomy.pixel_mm[0], "uncompressed")
    raw = link_series(sorted(series.iterdir()), folder / "test", sizes.test_series)
    run = write_model(folder / "model", "mobilenetv3_small_050" if quick else voco_options().backbone)
    about = {"part": part, "series": sizes.test_series, "slices": sizes.test_slices}
    results.add("infer", **about, **time_stages(raw, run))


def describe_step(
    training: Training,
    part: str,
    execution: Execution,
    step: Callable[[], None],
    step_s: float,
    ratio: float | None,
) -> dict[str, Any]:
    """The row of a step that takes `step_s` seconds and `ratio` times its bare networks."""
    row = {"part": part, "step": f"step, {execution}", "s": step_s, "x bare": ratio}
    row |= {"default": "yes" if training.default == execution else "no"}
    if not torch.cuda.is_available():
        return row | {"GB": resident_bytes("VmHWM") / 1e9}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    repeat(step, 2)
    torch.cuda.synchronize()
    row |= {"GB": torch.cuda.max_memory_allocated() / 1e9}
    return row | {"reserved GB": torch.cuda.max_memory_reserved() / 1e9}


def profile_step(step: Callable[[], None], step_s: float) -> dict[str, float]:
    """Seconds of the kernels of a step, and their share of `step_s`; without a GPU nothing."""
    if not torch.cuda.is_available():
        return {}
    kernels_s = measure_kernels(partial(repeat, step, 4)) / 4
    return {"kernels s": kernels_s, "busy": kernels_s / step_s}


def measure_kernels(work: Callable[[], Any]) -> float:
    """Seconds in which the GPU runs a kernel."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        seconds_of(work)
    return 1e-6 * covered(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals: kernels of several streams may run at a time."""
    total, end = 0.0, -math.inf
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def train_from_files(loop: TrainingLoop, workers: int, sizes: Sizes) -> float:
    """Seconds per batch of a training that reads, from the moment when what was read ahead is used up."""
    batches = enumerate(loop.method.read(0))

    def train(count: int) -> None:
        for number, batch in islice(batches, count):
            loop.train_on(batch, number)

    train(2 * workers)
    block = workers * math.ceil(sizes.steps / workers)  # workers deliver in turn
    taken_s, blocks = 0.0, 0
    while taken_s <= sizes.reading_s:
        taken_s += seconds_of(partial(train, block))
        blocks += 1
    return taken_s / (blocks * block)


if __name__ == "__main__":
    run_main(main, GpuBenchOptions)
