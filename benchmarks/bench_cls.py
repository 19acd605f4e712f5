"""What a training step of the classifier costs beyond the model, and how fast stacks are read.

    python benchmarks/bench_cls.py --json cls.json
    python benchmarks/bench_cls.py --quick

Series of one phantom patient, prepared at 256 px in three windows, the published setting: 48 slices, 192 px
crops. In turn, the model on one thread:

    model   forward, loss, backward, optimiser and weight average on batches that lie in memory
    step    what train_cls.py does: the same with one process that reads, augments and hands over the batches

and the loader alone, in this process: samples per second with PNG and with raw copies (--cache). A ratio is
the median over rounds.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from harness import BenchOptions, alternate, median_ratio, run_main
from phantom_files import link_prepared, prepare_phantom

from src.cls.dataset import StackBatch, StackDataset
from src.cls.fold import NetworkTraining, augmentation
from src.cls.inputs import TrainingInputs
from src.cls.options import ClassifierOptions
from src.cls.order import Draw
from src.cls.run import build_model, describe_networks
from src.core.log import format_table, say
from src.core.runtime import Runtime
from src.core.targets import COLUMNS
from src.data.packed import PackedSlices
from src.data.prepared import PreparedDataset
from src.nn.training import LoopSettings, TrainingLoop

TIME_LIMIT = 1.15
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
        training = build_training(write_set(phantom, folder / "set"), folder, **shape)
        times = compare_times(options, training)
        loading = compare_loading(training, folder / "cache", rounds=1 if options.quick else 3)
    return {**shape, "mean_slice_kb": mean_kb, **times, "loading": loading}


def write_set(phantom: Path, folder: Path) -> PreparedDataset:
    """Eight healthy patients with the phantom's slices, three hundred each."""
    dataset = link_prepared(phantom, folder, SERIES, slices=300)
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


def compare_loading(training: NetworkTraining, cache: Path, rounds: int) -> dict[str, float]:
    """Samples per second of one process, by where slices come from."""
    inputs, view = training.inputs.prepared, training.spec.view
    datasets = {
        source: StackDataset(
            inputs,
            training.series,
            view,
            labels=training.labels,
            augmentation=augmentation(training.options),
            packed=packed,
        )
        for source, packed in (("PNG", None), ("raw copies", PackedSlices(inputs, view.windows, cache)))
    }
    seconds = alternate({source: partial(read_all, dataset) for source, dataset in datasets.items()}, rounds)
    rates = {source: len(training.series) / statistics.median(tries) for source, tries in seconds.items()}
    say(f"\nstacks per second of the loader alone, one core\n{format_table([rates], 2)}")
    return rates


def read_all(dataset: StackDataset) -> None:
    for index in range(len(dataset)):
        _ = dataset[Draw(0, index)]


if __name__ == "__main__":
    run_main(main, ClassifierBenchOptions, threads=1)
