"""What a training step of the classifier costs beyond the model, and how fast stacks are read.

    python benchmarks/bench_cls.py --json cls.json
    python benchmarks/bench_cls.py --quick

Series of one phantom patient, prepared at 256 px in three windows, the published setting: 48 slices, 192 px
crops. In turn, the model on one thread:

    model   forward, loss, backward, optimiser and weight average on batches that lie in memory
    step    what train_cls.py does: the same with one process that reads, augments and hands over the batches

and the reader alone, by preset, in ms of one core per stack: from PNG, from raw copies (--cache), and naively
from raw copies, where neighbours are copied before each change is made to the whole stack. A ratio is the
median over rounds.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import torch
from harness import BenchOptions, alternate, median_ratio, read_preset, run_main
from phantom_files import link_prepared, prepare_phantom

from src.cls.dataset import StackBatch, StackDataset
from src.cls.fold import NetworkTraining, augmentation
from src.cls.inputs import TrainingInputs
from src.cls.options import ClassifierOptions
from src.cls.order import Draw
from src.cls.run import build_model, describe_networks
from src.core.log import format_table, say
from src.core.runtime import Runtime, sample_rng
from src.core.targets import COLUMNS, ORGANS
from src.data.packed import PackedSlices
from src.data.prepared import PreparedDataset, as_channels
from src.nn.training import LoopSettings, TrainingLoop

TIME_LIMIT = 1.15
STACK_LIMITS_MS = {"cnn_lstm": 40, "organ_aware": 70}
"""Of a stack from raw copies, on one core."""
SERIES = 8
EPOCHS = 3
"""Of a round: what the loader reads ahead while the other work has its turn is then a small part of it."""


PUBLISHED = {"backbone": "efficientnet_b0", "slices": 48, "crop": 192, "batch": 2, "workers": 1}
SMALL = {"backbone": "test_efficientnet", "slices": 16, "crop": 96, "batch": 2, "workers": 1}
"""The classifier's options, and those of --quick."""


@dataclass(frozen=True, kw_only=True)
class ClassifierBenchOptions(BenchOptions):
    repeats: int | None = None
    """timed rounds, of three epochs of 8 series each; by default 3, --quick 2"""


def main(options: ClassifierBenchOptions) -> dict[str, Any]:
    shape = SMALL if options.quick else PUBLISHED
    say("{backbone}, {slices} slices of {crop} px, {batch} stacks per step".format_map(shape))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        phantom, mean_kb = prepare_phantom(folder, options.quick)
        data = write_set(phantom, folder / "set")
        stacks = time_stacks(data, folder / "cache", rounds=1 if options.quick else 5)
        times = compare_times(options, build_training(data, folder, **shape))
    return {**shape, "mean_slice_kb": mean_kb, "stacks": stacks, **times}


def write_set(phantom: Path, folder: Path, series: int = SERIES, slices: int = 300) -> PreparedDataset:
    """Healthy patients with one series each of the phantom's slices."""
    dataset = link_prepared(phantom, folder, series, slices)
    names = dataset.series["patient_id"].tolist()
    labels = pd.DataFrame({"patient_id": names, **{column: 0 for column in COLUMNS}})
    healthy = [column for column in COLUMNS if column.endswith("_healthy")]
    labels[healthy] = 1
    labels.to_csv(folder / "train.csv", index=False)
    # a patient of a fold of its own, so that all others are trained on
    folds = pd.DataFrame({"patient_id": names, "fold": [int(name == names[-1]) for name in names]})
    folds.to_csv(folder / "folds.csv", index=False)
    return dataset


def build_training(data: PreparedDataset, folder: Path, **shape: Any) -> NetworkTraining:
    """The training of a classifier of the given options."""
    given = ClassifierOptions(
        data=data.folder,
        labels=data.folder / "train.csv",
        folds=data.folder / "folds.csv",
        output=folder / "run",
        epochs=1000,
        **shape,
    )
    inputs = TrainingInputs.read(given)
    spec = describe_networks(given, inputs)[0].spec
    model = build_model(spec, given, fold=0)
    return NetworkTraining(Runtime.create(), model, spec, given, inputs, inputs.series, "run")


def compare_times(options: ClassifierBenchOptions, training: NetworkTraining) -> dict[str, Any]:
    """Seconds of a step both ways, and their ratio."""
    settings = LoopSettings(10**6, 0, training.options.lr, training.options.clip, 0, 1, 1)
    loop = TrainingLoop(training, settings, training.runtime, training.options.output, {})
    epochs = {"step": read_and_train(loop), "model": train_from_memory(loop)}
    works = {name: partial(_repeat, epoch) for name, epoch in epochs.items()}
    seconds = alternate(works, options.repeats or (2 if options.quick else 3))
    ratio = median_ratio(seconds["step"], seconds["model"])
    steps = EPOCHS * training.order.batches
    row = {f"{name}, s per step": statistics.median(tries) / steps for name, tries in seconds.items()}
    row["step / model"] = ratio
    say(f"\n{format_table([row], 3)}\nstep / model is to be at most {TIME_LIMIT} at the published setting")
    return row


def _repeat(epoch: Callable[[], Any]) -> None:
    for _ in range(EPOCHS):
        epoch()


def train_from_memory(loop: TrainingLoop) -> Callable[[], Any]:
    """An epoch on batches in memory."""
    training = loop.method
    draws = training.order.share(0, 0)
    batches = [stack([training.dataset[Draw(0, int(number))] for number in own]) for own in draws]

    def epoch() -> None:
        for index, batch in enumerate(batches):
            loop.train_on(batch, index)

    return epoch


def read_and_train(loop: TrainingLoop) -> Callable[[], Any]:
    """An epoch as training runs it."""
    batches = enumerate(loop.method.read(0))

    def epoch() -> None:
        for number, batch in islice(batches, loop.method.order.batches):
            loop.train_on(batch, number)

    return epoch


def stack(samples: list[StackBatch]) -> StackBatch:
    return StackBatch(*(torch.stack(parts) for parts in zip(*samples, strict=True)))


def time_stacks(data: PreparedDataset, folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Figures of each preset, in ms of one core per stack, and the limit of raw copies."""
    write_ellipses(data)
    rows = {}
    for name, limit_ms in STACK_LIMITS_MS.items():
        files = (
            "--data",
            data.folder,
            "--labels",
            data.folder / "train.csv",
            "--folds",
            data.folder / "folds.csv",
        )
        options = read_preset(ClassifierOptions, f"cls/{name}", *files, "--first-weights", "none")
        inputs = TrainingInputs.read(options)
        view = describe_networks(options, inputs)[0].spec.view
        open_dataset = partial(
            StackDataset,
            inputs.prepared,
            inputs.series,
            view,
            inputs.organs,
            labels=inputs.labels,
            slice_targets=inputs.slice_targets if options.slice_loss else None,
            with_organs=options.organ_loss > 0,
            augmentation=augmentation(options),
        )
        plain = open_dataset()
        packed = open_dataset(packed=PackedSlices(inputs.prepared, view.windows, folder))
        ways = {
            "PNG": plain.__getitem__,
            "raw copies": packed.__getitem__,
            "naive": partial(naive_stack, packed),
        }
        for number in range(len(packed)):
            packed[Draw(0, number)]  # packs the series
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for epoch in range(rounds):
            for way, read in ways.items():
                started_s = time.process_time()
                for number in range(len(packed)):
                    read(Draw(epoch, number))
                taken[way].append(1e3 * (time.process_time() - started_s) / len(packed))
        rows[name] = {
            **{f"{way}, ms": statistics.median(tries) for way, tries in taken.items()},
            "naive / raw copies": median_ratio(taken["naive"], taken["raw copies"]),
            "limit, ms": limit_ms,
        }
    say(f"\na stack, one core\n{format_table([{'': name, **row} for name, row in rows.items()], 2)}")
    return rows


def naive_stack(dataset: StackDataset, drawn: Draw) -> np.ndarray:
    """Channels of a stack uint8 (T, C, H, W), by albumentations on all neighbours of all slices."""
    key, view, rng = dataset.keys[drawn.number % len(dataset)], dataset.view, sample_rng(0, *drawn)
    stack = dataset.reader.read(key, view, rng.random(), dataset.with_organs)
    images, maps = stack.images[stack.plan.places], stack.organs
    changes = dataset.augmenter
    pipeline = A.Compose([*changes.places.transforms, *changes.levels.transforms], seed=0)
    pipeline.set_random_state(rng, random.Random(int(rng.integers(2**31))))
    if maps is None:
        images = np.ascontiguousarray(pipeline(images=images)["images"])
    else:
        changed = pipeline(images=images, mask=np.ascontiguousarray(np.moveaxis(maps, 0, -1)))
        images, maps = np.ascontiguousarray(changed["images"]), np.moveaxis(changed["mask"], -1, 0)
    channels = [as_channels(images.reshape(view.slices, view.neighbours, *images.shape[1:]))]
    if view.masks == "each":
        channels.append(np.where(maps[..., None] == np.arange(1, 5), np.uint8(255), np.uint8(0)))
    return np.ascontiguousarray(np.concatenate(channels, axis=-1).transpose(0, 3, 1, 2))


def write_ellipses(data: PreparedDataset) -> None:
    """Write masks in which every organ is an ellipse, in the middle three fifths of the slices."""
    for row in data.series.itertuples():
        empty = np.zeros((data.size, data.size), np.uint8)
        masks = [empty] * row.slices
        for index in range(row.slices // 5, 4 * row.slices // 5):
            masks[index] = empty.copy()
            for label in ORGANS.values():
                middle = (data.size // 6 * label, data.size // 3 + 10 * label)
                cv2.ellipse(masks[index], middle, (20, 15 + index % 20), 10 * label, 0, 360, label, -1)
        data.write_masks(row.patient_id, row.series_id, masks)


if __name__ == "__main__":
    run_main(main, ClassifierBenchOptions, threads=1)
