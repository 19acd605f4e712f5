"""What the README's recipe takes with the competition's data: time, disk and GPU memory of every step.

    python benchmarks/recipe_cost.py --tflops 20 --cores 16 --json recipe.json
    python benchmarks/recipe_cost.py --quick

Nothing of that size runs here. Two things are found out of each step, and multiplied by how often it does
them on 4,711 series of 1,510,373 slices (prediction: 1,770 series of 317):

    GPU     operations of a training step or a forward pass with the presets as they are, counted on tensors
            without data. --tflops, what the GPU does per second on such networks, turns them into hours: the
            default is an assumption, and a small part of what its maker states. GPU GB is counted in fp32;
            activations take half of it in bf16 or fp16
    cores   seconds of one core of this machine, measured: preparing a phantom's slices of 512 px, and reading
            a sample as training does

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
from ct_files import machine

import prepare_data
from src.cls.model import ClassifierSpec, TraumaClassifier
from src.cls.options import ClassifierOptions
from src.cls.order import Draw
from src.cls.views import StackView
from src.core.config import ROOT, parse_options
from src.core.errors import exit_on_user_error
from src.core.files import write_json
from src.core.log import format_table, say
from src.core.targets import CLASS_WEIGHTS
from src.data.phantom.generate import generate_dataset
from src.data.phantom.options import PhantomOptions
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
META = torch.device("meta")


@dataclass(frozen=True)
class RecipeOptions:
    tflops: float = 20.0
    """what the GPU does of 10^12 operations a second; 20 is an assumption for a card as the A100 or 4090"""
    cores: int = 16
    """cores that read beside it"""
    quick: bool = False
    """smaller phantoms: to see that it works, not for figures"""
    json: Path | None = None
    """file for the figures"""

    def __post_init__(self) -> None:
        if self.tflops <= 0 or self.cores < 1:
            raise ValueError("--tflops must be above 0 and --cores at least 1")


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
        row["hours"] = max(row["PFLOP"] / options.tflops / 3.6, row["core hours"] / options.cores)
    say(f"\n{options.tflops:g} TFLOP/s, {options.cores} cores\n{format_table(rows, 1)}")
    if options.json:
        about = {"machine": machine(), "load": load, "tflops": options.tflops, "cores": options.cores}
        write_json(about | {"core_s": core_s, "steps": rows}, options.json)


def measure_cores(folder: Path, quick: bool) -> dict[str, float]:
    """Seconds of one core: of a slice that is prepared or read, and of a sample of each training."""
    matrix, spacing_z_mm = (128, 10.0) if quick else (512, 2.5)
    phantom = {"matrix": matrix, "spacing_z_mm": spacing_z_mm, "two_phase_rate": 0}
    counts, seconds = [], []
    for name, patients in (("warm", 1), ("short", 1), ("long", 3)):
        raw = folder / f"raw_{name}"
        generate_dataset(PhantomOptions(raw, patients=patients, test_patients=0, jobs=1, **phantom))
        given = ["--input", str(raw), "--size", str(SIZE), "--jobs", "1", "--output", str(folder / name)]
        counts.append(len(list(raw.glob("train_images/*/*/*.dcm"))))
        seconds.append(_seconds(partial(prepare_data.main, given)))
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
    row = _row("prepare_data.py", Count(0, 0), 0, SLICES * core_s["prepared slice"] / 3600)
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
    return _row("train_voco.py plus", counted, options.steps, hours)


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
    return _row("train_seg.py dual", _count(step, pair, average), options.steps, read)


def masks_row(core_s: dict[str, float]) -> dict[str, Any]:
    options = read_preset(SegOptions, "seg/dual", data=("data",))
    pair = build_pair(options).eval()
    shape = (16, SIZE, SIZE, options.slices * len(options.windows))
    images = torch.zeros(*shape, dtype=torch.uint8, device=META)
    counted = _count(partial(_without_graph, pair.probabilities, images), pair)
    return _row("segment.py", counted, SLICES / 16, SLICES * core_s["slice from PNG"] / 3600)


def classifier_row(core_s: dict[str, float]) -> dict[str, Any]:
    options, model, images = build_classifier()
    model.train()

    def step() -> None:
        model.zero_grad()
        model(images).logits.square().mean().backward()

    samples = FOLDS * options.epochs * SERIES * (FOLDS - 1) / FOLDS
    hours = samples * core_s["classifier sample"] / 3600
    return _row("train_cls.py cnn_lstm", _count(step, model), samples / options.batch, hours)


def prediction_row(core_s: dict[str, float]) -> dict[str, Any]:
    """Reading is at most what preparing all slices would be: infer.py decodes those that models see."""
    options, model, images = build_classifier()
    model.eval()
    counted = _count(partial(_without_graph, model, images), model)
    passes = TEST_SERIES * FOLDS * len(options.tta) / options.batch
    hours = TEST_SERIES * TEST_SLICES * core_s["prepared slice"] / 3600
    return _row("infer.py", counted, passes, hours)


def build_pair(options: SegOptions) -> SegmenterPair:
    mean, std = default_greys(options.windows)
    networks = (options.backbones, options.decoders, options.decoder_width, options.windows, options.slices)
    return SegmenterPair(SegmenterSpec(*networks, SIZE, (mean, mean), (std, std))).to(META)


def build_classifier() -> tuple[ClassifierOptions, TraumaClassifier, torch.Tensor]:
    """The preset, its network, and a batch for it."""
    given = {"data": "data", "labels": "train.csv", "folds": "folds.csv"}
    options = read_preset(ClassifierOptions, "cls/cnn_lstm", **given)
    windows = ("soft", "organ", "wide")
    view = StackView(windows, size=SIZE, crop=options.crop, slices=options.slices)
    grey = (GREY_MEAN,) * len(windows), (GREY_STD,) * len(windows)
    prior = {column: weight / 10 for column, weight in CLASS_WEIGHTS.items()}
    spec = ClassifierSpec(options.backbone, view, *grey, hidden=options.hidden, prior=prior)
    shape = (options.batch, options.slices, len(windows), options.crop, options.crop)
    images = torch.zeros(*shape, dtype=torch.uint8, device=META)
    return options, TraumaClassifier(spec).to(META), images


def read_preset(options: type, name: str, **given: Any) -> Any:
    """A preset as its script would read it."""
    words = [word for key, value in given.items() for word in (f"--{key}", *_words(value))]
    arguments = ["--config", str(ROOT / "configs" / f"{name}.yaml"), *words, "--output", "unused"]
    return parse_options(options, arguments, prog="recipe_cost.py", description="")


def _words(value: Any) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else (str(value),)


def _without_graph(work: Callable[..., Any], images: torch.Tensor) -> None:
    with torch.no_grad():
        work(images)


def _count(work: Callable[[], Any], *networks: torch.nn.Module) -> Count:
    tensors = [each for network in networks for each in (*network.parameters(), *network.buffers())]
    return count(work, tensors)


def _row(name: str, counted: Count, times: float, core_hours: float) -> dict[str, Any]:
    return {
        "step": name,
        "GFLOP each": counted.flops / 1e9,
        "times": round(times),
        "PFLOP": counted.flops * times / 1e15,
        "GPU GB": counted.peak_bytes / 1e9,
        "core hours": core_hours,
        "disk GB": None,
    }


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    with exit_on_user_error():
        main()
