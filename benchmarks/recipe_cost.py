"""What the README's recipe takes with the competition's data: time, disk and GPU memory of every step.

    python benchmarks/recipe_cost.py --json recipe.json
    python benchmarks/recipe_cost.py --quick

A step costs so much, measured on a phantom, times as often as the recipe does it on 4,711 series of 1,510,373
slices (prediction: 1,770 series of 317):

    GPU     a training step (networks, in pre-training objective and monitors, clipping, optimiser, moving
            average), or a forward pass, with the presets and the encoder of the recipe: seconds and memory on
            the GPU at hand in its fastest precision. Without a GPU operations and memory are counted on
            tensors without data, in fp32
    readers seconds of one core of this machine: preparing slices of 512 px in RLE, as the competition has
            them, and reading a sample as training does; shared by the processes that read, as the recipe
            and the presets say

A step takes as long as the slower of both. Downloads, uploads and waiting for Kaggle are not in it.
"""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import bench_cls
import torch
from counting import META, count_step, measure_step
from harness import BenchOptions, alternate, run_main, seconds_of
from phantom_files import phantom_series, prepare_phantom, write_series
from recipe_steps import (
    MASKS_BATCH,
    SIZE,
    classifier_options,
    classifier_step,
    masks_pass,
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
from src.seg.dataset import Key, SliceDataset
from src.seg.split import SegData
from src.voco.dataset import open_dataset

SERIES, SLICES = 4_711, 1_510_373
TEST_SERIES, TEST_SLICES = 1_770, 317
FOLDS = 5
PREPARING, SEGMENTING = 16, 8
"""Processes that read, as the README's commands say; those of a training are in its preset."""
ON_KAGGLE = 3
"""Threads that read in a notebook: its four cores less one."""
FOR_THE_BODY = 64
"""Slices of a series, at most, that are decoded to find out where the body lies."""


def main(options: BenchOptions) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        core_s = measure_cores(Path(scratch), options.quick)
    rows = [add_gpu(row, options.quick) for row in list_steps(core_s)]
    say(f"\nhours of one core are shared by the readers\n{format_table(rows, 2)}")
    model, _ = classifier_step(META).networks
    disk_gb = {
        "prepared slices": SLICES * core_s["slice in KB"] / 1e6,
        "classifiers": FOLDS * sum(each.nbytes for each in model.state_dict().values()) / 1e9,
    }
    say(f"\nGB on disk\n{format_table([disk_gb], 2)}")
    return {"core_s": core_s, "steps": rows, "disk_gb": disk_gb}


def list_steps(core_s: dict[str, float]) -> list[dict[str, Any]]:
    """The steps of the recipe: what a GPU does and how often, and the hours of reading."""
    voco, seg, cls = voco_options(), seg_options(), classifier_options()
    read = {
        "prepared": SLICES * core_s["prepared slice"],
        "voco": voco.steps * voco.batch * core_s["pre-training sample"],
        "seg": seg.steps * (seg.batch + seg.unlabelled_batch) * core_s["segmentation sample"],
        "masks": SLICES * core_s["slice from PNG"],
        "cls": (stacks := cls.epochs * SERIES * (FOLDS - 1)) * core_s["classifier sample"],
        "infer": TEST_SERIES * (cls.slices + FOR_THE_BODY) * core_s["prepared slice"],
    }
    passes = TEST_SERIES * FOLDS * len(cls.tta) / cls.batch
    steps = [
        ("prepare_data.py", None, 0, "prepared", PREPARING),
        ("train_voco.py plus", pretraining_step, voco.steps, "voco", voco.workers),
        ("train_seg.py dual", segmenter_step, seg.steps, "seg", seg.workers),
        ("segment.py", masks_pass, SLICES / MASKS_BATCH, "masks", SEGMENTING),
        ("train_cls.py cnn_lstm", classifier_step, stacks / cls.batch, "cls", cls.workers),
        ("infer.py", prediction_pass, passes, "infer", ON_KAGGLE),
    ]
    return [
        {
            **{"step": name, "network": network, "times": round(times)},
            **{"core hours": read[what] / 3600, "readers": readers},
            "reading hours": read[what] / 3600 / readers,
        }
        for name, network, times, what, readers in steps
    ]


def add_gpu(row: dict[str, Any], quick: bool) -> dict[str, Any]:
    """A row with operations and memory of one step, on a GPU its seconds, and the hours of all."""
    build = row.pop("network")
    if build is None:
        return row
    counted = count_step(build(META))
    row |= {"GFLOP each": counted.flops / 1e9, "GPU GB": counted.peak_bytes / 1e9}
    if torch.cuda.is_available():
        runtime = Runtime.create()
        seconds, peak_bytes = measure_step(build(runtime.device), runtime, repeats=2 if quick else 10)
        row |= {"GPU GB": peak_bytes / 1e9, "s each": seconds, "TFLOP/s": counted.flops / 1e12 / seconds}
        row |= {"GPU hours": seconds * row["times"] / 3600}
    return row


def measure_cores(folder: Path, quick: bool) -> dict[str, float]:
    """Seconds of one core: of a slice that is prepared or read, and of a sample of each training."""
    anatomy = phantom_series(folder / "anatomy", spacing_z_mm=8.0 if quick else 4.0)
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
    series = data.series.assign(set=0, has_masks=False, part="unlabelled")
    windows = (data.channels(data.windows),)
    masked = SliceDataset(SegData((data,), series, data.windows, windows, 0), seg_options())
    crops = open_dataset(replace(voco_options(), data=(data.folder,)))
    return {
        "prepared slice": prepare_s,
        "slice from PNG": seconds_of(lambda: [read_png(path) for path in images]) / len(images),
        "pre-training sample": seconds_of(lambda: [crops[0, each] for each in range(8)]) / 8,
        "segmentation sample": seconds_of(lambda: [masked[Key(False, each)] for each in range(40)]) / 40,
        "classifier sample": seconds_of(lambda: [stacks[Draw(0, each)] for each in range(7)]) / 7,
        "slice in KB": kilobytes,
    }


def prepare_once(raw: Path) -> None:
    with tempfile.TemporaryDirectory() as output:
        prepare_data.main(f"--input {raw} --output {output}/prepared --size {SIZE} --jobs 1".split())


if __name__ == "__main__":
    run_main(main, BenchOptions, threads=1)
