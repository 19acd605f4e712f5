"""What the README's recipe takes with the competition's data: time, disk and GPU memory of every step.

    python benchmarks/recipe_cost.py --tflops 20 --kaggle-tflops 4 --json recipe.json
    python benchmarks/recipe_cost.py --quick

Nothing of that size runs here. Two things are found out of each step, and multiplied by how often it does
them on 4,711 series of 1,510,373 slices (prediction: 1,770 series of 317):

    GPU     operations of a training step or a forward pass with the presets and the encoder of the recipe,
            counted on tensors without data. --tflops, what the GPU does per second on such networks, turns
            them into hours, for infer.py --kaggle-tflops: the defaults are assumptions, 6 % of what the
            makers of an A100 and a T4 state for 16 bits. GPU GB is counted in fp32; activations take half of
            it in bf16 or fp16
    readers seconds of one core of this machine, measured: preparing a phantom's slices of 512 px in RLE, as
            the competition has them, and reading a sample as training does; shared by the processes that
            read, as the recipe and the presets say

A step takes as long as the slower of both. Downloads, uploads and waiting for Kaggle are not known here.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import bench_cls
from bench_voco_data import prepare_phantom
from cost_2d_vs_3d import crops_of
from counting import Count, count
from ct_files import machine, phantom_series, write_series
from presets import read_preset

import prepare_data
from src.cls.model import ClassifierSpec, TraumaClassifier
from src.cls.options import ClassifierOptions
from src.cls.order import Draw
from src.cls.views import StackView
from src.core.config import parse_options
from src.core.errors import exit_on_user_error
from src.core.files import write_json
from src.core.log import format_table, say
from src.core.targets import CLASS_WEIGHTS
from src.data.stack import image_folder, read_png
from src.nn.encoder import GREY_MEAN, GREY_STD
from src.seg.model import SegmenterPair, SegmenterSpec, default_greys
from src.seg.options import SegOptions
from src.voco.dataset import open_dataset
from src.voco.model import build_network, embed_by_both, make_teacher
from src.voco.options import VocoOptions

SERIES, SLICES = 4_711, 1_510_373
TEST_SERIES, TEST_SLICES = 1_770, 317
FOLDS = 5
SIZE = 256
PREPARING, SEGMENTING = 16, 8
"""Processes that read, as the README's commands say; a training's stand in its preset."""
ON_KAGGLE = 3
"""Threads that read in a notebook: its four cores less one."""
FOR_THE_BODY = 64
"""Slices of a series, at most, that are decoded to find out where the body lies."""
META = torch.device("meta")


@dataclass(frozen=True)
class RecipeOptions:
    tflops: float = 20.0
    """what the GPU does of 10^12 operations a second; 20 is an assumption for a card as the A100 or 4090"""
    kaggle_tflops: float = 4.0
    """and the T4 of a notebook, of which infer.py takes one"""
    quick: bool = False
    """smaller phantoms: to see that it works, not for figures"""
    json: Path | None = None
    """file for the figures"""

    def __post_init__(self) -> None:
        if min(self.tflops, self.kaggle_tflops) <= 0:
            raise ValueError("--tflops and --kaggle-tflops must be above 0")


def main(argv: list[str] | None = None) -> None:
    options = parse_options(RecipeOptions, argv, prog="recipe_cost.py", description=__doc__)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    load = os.getloadavg()[0]
    say(f"{machine()}; load {load:.1f}" + (": other work slows it" if load > 0.5 else ""))
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
    for row in rows:
        tflops = options.kaggle_tflops if row["step"] == "infer.py" else options.tflops
        row["GPU hours"] = row["PFLOP"] / tflops / 3.6
        row["reading hours"] = row["core hours"] / row["readers"]
        row["hours"] = max(row["GPU hours"], row["reading hours"])
    pace = f"{options.tflops:g} TFLOP/s, for infer.py {options.kaggle_tflops:g}"
    say(f"\n{pace}; hours of one core are shared by the readers\n{format_table(rows, 2)}")
    if options.json:
        about = {"machine": machine(), "load": load, "tflops": options.tflops}
        about["kaggle_tflops"] = options.kaggle_tflops
        write_json(about | {"core_s": core_s, "steps": rows}, options.json)


def measure_cores(folder: Path, quick: bool) -> dict[str, float]:
    """Seconds of one core: of a slice that is prepared or read, and of a sample of each training."""
    anatomy = phantom_series(folder / "anatomy", spacing_z_mm=20.0 if quick else 8.0)
    slices, pixel_mm = [anatomy.read(index) for index in range(len(anatomy.z_mm))], anatomy.pixel_mm[0]
    counts, seconds = (10, 10, 60) if quick else (TEST_SLICES, TEST_SLICES, 4 * TEST_SLICES), []
    for number, length in enumerate(counts):  # the first to warm up
        raw, output = folder / f"raw{number}", folder / f"prepared{number}"
        write_series(raw / "train_images" / "1" / "1", slices, length, pixel_mm, "RLE")
        given = f"--input {raw} --output {output} --size {SIZE} --jobs 1"
        seconds.append(_seconds(partial(prepare_data.main, given.split())))
    # without what a run pays once
    prepare_s = (seconds[2] - seconds[1]) / (counts[2] - counts[1])
    prepared, kilobytes = prepare_phantom(folder, quick)
    data = bench_cls.write_set(prepared, folder / "set")
    images = sorted(image_folder(data.folder, "0", "0").glob("*.png"))
    options = bench_cls.BenchOptions(workers=0, backbone="test_efficientnet")  # reading is all that it does
    stacks = bench_cls.build_training(options, data, folder).dataset()
    crops = open_dataset(read_preset(VocoOptions, "voco/plus", data=(str(data.folder),)))
    return {
        "prepared slice": prepare_s,
        "slice from PNG": _seconds(lambda: [read_png(path) for path in images]) / len(images),
        "pre-training sample": _seconds(lambda: [crops[0, each] for each in range(8)]) / 8,
        "classifier sample": _seconds(lambda: [stacks[Draw(0, each)] for each in range(7)]) / 7,
        "slice in KB": kilobytes,
    }


def prepare_row(core_s: dict[str, float]) -> dict[str, Any]:
    hours = SLICES * core_s["prepared slice"] / 3600
    row = _row("prepare_data.py", Count(0, 0), 0, hours, PREPARING)
    return row | {"disk GB": SLICES * core_s["slice in KB"] / 1e6}


def pretraining_row(core_s: dict[str, float]) -> dict[str, Any]:
    options = read_preset(VocoOptions, "voco/plus", data=("data",))
    student = build_network(options).train().to(META)
    teacher = make_teacher(student, options.shared_backbone).to(META)
    shape = (options.batch, crops_of(options), options.slices, options.tile, options.tile)
    tiles = torch.zeros(*shape, len(options.windows), dtype=torch.uint8, device=META)

    def step() -> None:
        student.zero_grad()
        embeddings, _ = embed_by_both(student, teacher, tiles)
        embeddings.square().mean().backward()

    counted = _count(step, student, teacher)
    samples = options.steps * options.batch
    hours = samples * core_s["pre-training sample"] / 3600
    return _row("train_voco.py plus", counted, options.steps, hours, options.workers)


def segmenter_row(core_s: dict[str, float]) -> dict[str, Any]:
    options = read_preset(SegOptions, "seg/dual", data=("data",))
    pair = build_pair(options).train()
    average = build_pair(options).eval()
    shape = (SIZE, SIZE, options.slices * len(options.windows))
    slices = options.batch + options.unlabelled_batch
    views = torch.zeros(slices, *shape, dtype=torch.uint8, device=META)
    plain = views[: options.unlabelled_batch]

    def step() -> None:
        pair.zero_grad()
        with torch.no_grad():
            average.probabilities(plain)
        sum(answer.logits.square().mean() for answer in pair(views, views)).backward()

    read = options.steps * slices * options.slices * core_s["slice from PNG"] / 3600
    return _row("train_seg.py dual", _count(step, pair, average), options.steps, read, options.workers)


def masks_row(core_s: dict[str, float]) -> dict[str, Any]:
    options = read_preset(SegOptions, "seg/dual", data=("data",))
    pair = build_pair(options).eval()
    shape = (16, SIZE, SIZE, options.slices * len(options.windows))
    images = torch.zeros(*shape, dtype=torch.uint8, device=META)
    counted = _count(partial(_without_graph, pair.probabilities, images), pair)
    hours = SLICES * core_s["slice from PNG"] / 3600
    return _row("segment.py", counted, SLICES / 16, hours, SEGMENTING)


def classifier_row(core_s: dict[str, float]) -> dict[str, Any]:
    options, model, images = build_classifier()
    model.train()

    def step() -> None:
        model.zero_grad()
        model(images).logits.square().mean().backward()

    samples = FOLDS * options.epochs * SERIES * (FOLDS - 1) / FOLDS
    hours = samples * core_s["classifier sample"] / 3600
    counted = _count(step, model)
    row = _row("train_cls.py cnn_lstm", counted, samples / options.batch, hours, options.workers)
    networks = FOLDS * sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    return row | {"disk GB": networks / 1e9}


def prediction_row(core_s: dict[str, float]) -> dict[str, Any]:
    """Of a series infer.py decodes the slices that models see, and some to find the body."""
    options, model, images = build_classifier()
    model.eval()
    counted = _count(partial(_without_graph, model, images), model)
    passes = TEST_SERIES * FOLDS * len(options.tta) / options.batch
    hours = TEST_SERIES * (options.slices + FOR_THE_BODY) * core_s["prepared slice"] / 3600
    return _row("infer.py", counted, passes, hours, ON_KAGGLE)


def build_pair(options: SegOptions) -> SegmenterPair:
    mean, std = default_greys(options.windows)
    networks = (options.backbones, options.decoders, options.decoder_width, options.windows, options.slices)
    return SegmenterPair(SegmenterSpec(*networks, SIZE, (mean, mean), (std, std))).to(META)


def build_classifier() -> tuple[ClassifierOptions, TraumaClassifier, torch.Tensor]:
    """The preset, its network with the encoder of the recipe, and a batch for it."""
    given = {"data": "data", "labels": "train.csv", "folds": "folds.csv"}
    options = read_preset(ClassifierOptions, "cls/cnn_lstm", **given)
    backbone = read_preset(VocoOptions, "voco/plus", data=("data",)).backbone
    windows = ("soft", "organ", "wide")
    view = StackView(windows, size=SIZE, crop=options.crop, slices=options.slices)
    grey = (GREY_MEAN,) * len(windows), (GREY_STD,) * len(windows)
    prior = {column: weight / 10 for column, weight in CLASS_WEIGHTS.items()}
    spec = ClassifierSpec(backbone, view, *grey, hidden=options.hidden, prior=prior)
    shape = (options.batch, options.slices, len(windows), options.crop, options.crop)
    images = torch.zeros(*shape, dtype=torch.uint8, device=META)
    return options, TraumaClassifier(spec).to(META), images


def _without_graph(work: Callable[..., Any], images: torch.Tensor) -> None:
    with torch.no_grad():
        work(images)


def _count(work: Callable[[], Any], *networks: torch.nn.Module) -> Count:
    tensors = [each for network in networks for each in (*network.parameters(), *network.buffers())]
    return count(work, tensors)


def _row(name: str, counted: Count, times: float, core_hours: float, readers: int) -> dict[str, Any]:
    return {
        "step": name,
        "GFLOP each": counted.flops / 1e9,
        "times": round(times),
        "PFLOP": counted.flops * times / 1e15,
        "GPU GB": counted.peak_bytes / 1e9,
        "core hours": core_hours,
        "readers": readers,
        "disk GB": None,
    }


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    with exit_on_user_error():
        main()
