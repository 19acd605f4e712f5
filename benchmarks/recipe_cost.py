"""What the README's recipe takes with the competition's data: time, disk and GPU memory of every step.

    python benchmarks/recipe_cost.py --tflops 10 --kaggle-tflops 2 --json recipe.json
    python benchmarks/recipe_cost.py --measure
    python benchmarks/recipe_cost.py --quick

Nothing of that size runs here. Two things are found out of each step, and multiplied by how often it does
them on 4,711 series of 1,510,373 slices (prediction: 1,770 series of 317):

    GPU     operations of a training step or a forward pass with the presets and the encoder of the recipe,
            counted on tensors without data. --tflops, what the GPU does per second on such networks, turns
            them into hours, for infer.py --kaggle-tflops: the defaults are assumptions, the 24 that an H200
            was measured at times the share that an A100 and a T4 have of its memory bandwidth. GPU GB is
            counted in fp32; activations take half of it in bf16 or fp16. With --measure each step is run
            on the GPU at hand, in its fastest precision and without the optimiser: these are its seconds
            and its memory
    readers seconds of one core of this machine, measured: preparing a phantom's slices of 512 px in RLE, as
            the competition has them, and reading a sample as training does; shared by the processes that
            read, as the recipe and the presets say

A step takes as long as the slower of both. Downloads, uploads and waiting for Kaggle are not known here.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import bench_cls
import torch
from cost_2d_vs_3d import Count
from harness import BenchOptions, alternate, device_name, run_main, seconds_of
from phantom_files import phantom_series, prepare_phantom, write_series
from recipe_steps import (
    MASKS_BATCH,
    META,
    SIZE,
    Step,
    classifier_options,
    classifier_step,
    count_step,
    masks_pass,
    measure_step,
    prediction_pass,
    pretraining_step,
    seg_options,
    segmenter_step,
    voco_options,
)

import prepare_data
from src.cls.order import Draw
from src.core.log import format_table, say
from src.core.runtime import Runtime
from src.data.png import read_png
from src.data.prepared import image_folder
from src.voco.dataset import open_dataset

SERIES, SLICES = 4_711, 1_510_373
TEST_SERIES, TEST_SLICES = 1_770, 317
FOLDS = 5
PREPARING, SEGMENTING = 16, 8
"""Processes that read, as the README's commands say; a training's stand in its preset."""
ON_KAGGLE = 3
"""Threads that read in a notebook: its four cores less one."""
FOR_THE_BODY = 64
"""Slices of a series, at most, that are decoded to find out where the body lies."""


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(BenchOptions):
    tflops: float = 10.0
    """what the GPU does of 10^12 operations a second; 10 is an assumption for a card as the A100"""
    kaggle_tflops: float = 2.0
    """and the T4 of a notebook, of which infer.py takes one"""
    measure: bool = False
    """the time and memory of the GPU at hand, instead of --tflops"""

    def __post_init__(self) -> None:
        if min(self.tflops, self.kaggle_tflops) <= 0:
            raise ValueError("--tflops and --kaggle-tflops must be above 0")
        if self.measure and not torch.cuda.is_available():
            raise ValueError("--measure needs a GPU")


def main(options: RecipeOptions) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        core_s = measure_cores(Path(scratch), options.quick)
    rows = [
        prepare_row(core_s),
        pretraining_row(core_s),
        segmenter_row(core_s),
        masks_row(core_s),
        classifier_row(core_s),
        prediction_row(core_s),
    ]
    pace = measure_hours(rows, options.quick) if options.measure else assume_hours(rows, options)
    for row in rows:
        row["reading hours"] = row["core hours"] / row["readers"]
        row["hours"] = max(row["GPU hours"], row["reading hours"])
    say(f"\n{pace}; hours of one core are shared by the readers\n{format_table(rows, 2)}")
    return {"pace": pace, "core_s": core_s, "steps": rows}


def assume_hours(rows: list[dict[str, Any]], options: RecipeOptions) -> str:
    """Turn operations into hours; tells at what pace."""
    for row in rows:
        del row["build"]
        tflops = options.kaggle_tflops if row["step"] == "infer.py" else options.tflops
        row["GPU hours"] = row["PFLOP"] / tflops / 3.6
    return f"{options.tflops:g} TFLOP/s, for infer.py {options.kaggle_tflops:g}"


def measure_hours(rows: list[dict[str, Any]], quick: bool) -> str:
    """Run every step some times, and take its seconds as often as the recipe does it; tells on what GPU."""
    runtime = Runtime.create()
    for row in rows:
        build = row.pop("build")
        row |= {"s each": None, "TFLOP/s": None, "GPU hours": 0.0}
        if build is not None:
            seconds, peak_bytes = measure_step(build, runtime, repeats=2 if quick else 10)
            row |= {"s each": seconds, "TFLOP/s": row["GFLOP each"] / 1e3 / seconds}
            row |= {"GPU GB": peak_bytes / 1e9, "GPU hours": seconds * row["times"] / 3600}
    return f"measured on one {device_name()} in {runtime.precision}"


def measure_cores(folder: Path, quick: bool) -> dict[str, float]:
    """Seconds of one core: of a slice that is prepared or read, and of a sample of each training."""
    anatomy = phantom_series(folder / "anatomy", spacing_z_mm=20.0 if quick else 8.0)
    slices, pixel_mm = [anatomy.read(index) for index in range(len(anatomy.z_mm))], anatomy.pixel_mm[0]
    short, long = (10, 60) if quick else (TEST_SLICES, 4 * TEST_SLICES)
    for length in (short, long):
        write_series(folder / f"raw{length}" / "train_images" / "1" / "1", slices, length, pixel_mm, "RLE")
    runs = {length: partial(prepare_once, folder / f"raw{length}") for length in (short, long)}
    tries = alternate(runs, 3)
    # the start of a run takes as long as many slices, and longer on a busy machine: the least of some tries
    prepare_s = (min(tries[long]) - min(tries[short])) / (long - short)
    prepared, kilobytes = prepare_phantom(folder, quick)
    data = bench_cls.write_set(prepared, folder / "set")
    images = sorted(image_folder(data.folder, "0", "0").glob("*.png"))
    shape = bench_cls.PUBLISHED | {"workers": 0, "backbone": "test_efficientnet"}  # it only reads
    stacks = bench_cls.build_training(data, folder, **shape).dataset
    crops = open_dataset(replace(voco_options(), data=(data.folder,)))
    return {
        "prepared slice": prepare_s,
        "slice from PNG": seconds_of(lambda: [read_png(path) for path in images]) / len(images),
        "pre-training sample": seconds_of(lambda: [crops[0, each] for each in range(8)]) / 8,
        "classifier sample": seconds_of(lambda: [stacks[Draw(0, each)] for each in range(7)]) / 7,
        "slice in KB": kilobytes,
    }


def prepare_once(raw: Path) -> None:
    with tempfile.TemporaryDirectory() as output:
        prepare_data.main(f"--input {raw} --output {output}/prepared --size {SIZE} --jobs 1".split())


def prepare_row(core_s: dict[str, float]) -> dict[str, Any]:
    hours = SLICES * core_s["prepared slice"] / 3600
    row = _row("prepare_data.py", None, 0, hours, PREPARING)
    return row | {"disk GB": SLICES * core_s["slice in KB"] / 1e6}


def pretraining_row(core_s: dict[str, float]) -> dict[str, Any]:
    options = voco_options()
    hours = options.steps * options.batch * core_s["pre-training sample"] / 3600
    return _row("train_voco.py plus", pretraining_step, options.steps, hours, options.workers)


def segmenter_row(core_s: dict[str, float]) -> dict[str, Any]:
    options = seg_options()
    slices = options.steps * (options.batch + options.unlabelled_batch) * options.slices
    hours = slices * core_s["slice from PNG"] / 3600
    return _row("train_seg.py dual", segmenter_step, options.steps, hours, options.workers)


def masks_row(core_s: dict[str, float]) -> dict[str, Any]:
    hours = SLICES * core_s["slice from PNG"] / 3600
    return _row("segment.py", masks_pass, SLICES / MASKS_BATCH, hours, SEGMENTING)


def classifier_row(core_s: dict[str, float]) -> dict[str, Any]:
    options = classifier_options()
    samples = FOLDS * options.epochs * SERIES * (FOLDS - 1) / FOLDS
    hours = samples * core_s["classifier sample"] / 3600
    row = _row("train_cls.py cnn_lstm", classifier_step, samples / options.batch, hours, options.workers)
    (model,) = classifier_step(META).networks
    return row | {"disk GB": FOLDS * sum(each.nbytes for each in model.state_dict().values()) / 1e9}


def prediction_row(core_s: dict[str, float]) -> dict[str, Any]:
    """Of a series infer.py decodes the slices that models see, and some to find the body."""
    options = classifier_options()
    passes = TEST_SERIES * FOLDS * len(options.tta) / options.batch
    hours = TEST_SERIES * (options.slices + FOR_THE_BODY) * core_s["prepared slice"] / 3600
    return _row("infer.py", prediction_pass, passes, hours, ON_KAGGLE)


def _row(
    name: str, build: Callable[[torch.device], Step] | None, times: float, core_hours: float, readers: int
) -> dict[str, Any]:
    """One step of the recipe, which `build` makes on a device; None where no GPU takes part."""
    counted = count_step(build) if build else Count(0, 0)
    return {
        "step": name,
        "build": build,
        "GFLOP each": counted.flops / 1e9,
        "times": round(times),
        "PFLOP": counted.flops * times / 1e15,
        "GPU GB": counted.peak_bytes / 1e9,
        "core hours": core_hours,
        "readers": readers,
        "disk GB": None,
    }


if __name__ == "__main__":
    run_main(main, RecipeOptions, threads=1)
