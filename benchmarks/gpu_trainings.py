"""The trainings that bench_gpu.py measures: presets on linked phantoms, with their bare networks."""

import copy
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from bench_cls import write_ellipses, write_set
from bench_voco import build_backbone
from harness import read_preset
from recipe_steps import voco_options
from torch import Tensor
from torch.utils.data import Dataset

from src.cls.fold import NetworkTraining, choose_slices_to_decode, open_cache
from src.cls.inputs import TrainingInputs
from src.cls.options import ClassifierOptions
from src.cls.order import Draw
from src.cls.run import build_model, describe_networks
from src.cls.stacks import StackReader
from src.core.config import Execution
from src.core.log import say
from src.core.runtime import Runtime, sample_rng
from src.data.prepared import mask_folder
from src.nn.loading import StackLoader
from src.nn.schedule import LoopSettings
from src.nn.training import Method, TrainingLoop
from src.seg.dataset import Key, SliceDataset
from src.seg.options import SegOptions
from src.seg.run import PairTraining
from src.seg.split import open_data
from src.voco.dataset import open_dataset
from src.voco.options import VocoOptions
from src.voco.position import PositionPretraining

SMALL_STACKS = ("--backbone", "test_efficientnet", "--slices", "16", "--crop", "96", "--batch", "2")


@dataclass(frozen=True)
class Training:
    """A training before its first step."""

    loop: TrainingLoop
    unit: str
    """of its samples"""
    samples: int
    """per step"""
    default: Execution
    """of the preset"""
    build_bare: Callable[[Any], Callable[[], None]]
    """from a batch: forward and backward of the networks of a step, and the teacher's forward"""
    open_dataset: Callable[[Path | None], Dataset]
    """its samples, read through a cache if a folder is given"""
    keys: list[Any]
    """samples that together read every series"""

    def is_captured(self) -> bool:
        """Whether a part of the trained network runs as a CUDA graph, which replaces its `forward`."""
        _, *parts = self.loop.runtime.unwrap(self.loop.method.network).modules()
        return any("forward" in vars(part) for part in parts)


def write_data(phantom: Path, folder: Path, series: int, slices: int) -> None:
    """A prepared set of linked series with masks, labels, folds, and a list of those that are labelled."""
    data = write_set(phantom, folder, series, slices)
    first, *others = data.series["patient_id"]
    write_ellipses(replace(data, series=data.series[:1]))
    for name in others:
        shutil.copytree(
            mask_folder(folder, first, first), mask_folder(folder, name, name), copy_function=os.link
        )
    data.series[["patient_id", "series_id"]][::2].to_csv(folder / "labelled.csv", index=False)


def open_training(name: str, data: Path, execution: Execution, small: bool) -> Training:
    """A preset with random first weights; `small` for a CPU: the small preset, or small stacks."""
    return _OPENERS[name](name, data, execution, small)


def prepare_steps(training: Training) -> tuple[Callable[[], None], Any]:
    """A step on batches in memory, ready to run, and one of the batches."""
    loop, method = training.loop, training.loop.method
    options = method.options
    method.options = replace(options, workers=0)  # starting processes takes longer
    batches = list(islice(method.read(0), 2))
    method.options = options
    method.before_first_step()
    numbers = cycle(range(len(batches)))

    def step() -> None:
        number = next(numbers)
        loop.train_on(batches[number], number)

    return step, batches[0]


def repeat(work: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        work()


def make_cache(training: Training, folder: Path) -> Dataset:
    """The samples of a training from a cache, which is complete."""
    dataset, started = training.open_dataset(folder), time.monotonic()
    for _ in StackLoader(dataset, os.cpu_count(), batch_size=None, sampler=training.keys):
        pass
    say(f"cache of {len(training.keys)} series: {time.monotonic() - started:.1f} s")
    return dataset


def _open_voco(name: str, data: Path, execution: Execution, small: bool) -> Training:
    preset = read_preset(VocoOptions, f"voco/{name}{'_small' * small}", "--data", data)
    options = replace(preset, execution=execution)
    runtime = Runtime.create(options.precision)
    method = PositionPretraining(options, open_dataset(options), runtime, with_first_weights=False)
    return Training(
        _loop(method, LoopSettings.of(options)),
        *("volumes", options.batch, preset.execution),
        build_bare=lambda batch: build_backbone(options),
        open_dataset=lambda cache: open_dataset(replace(options, cache=cache)),
        keys=[(0, entry) for entry in range(len(method.dataset))],
    )


def _open_classifier(name: str, data: Path, execution: Execution, small: bool) -> Training:
    """With the backbone of the recipe, not the one that the preset takes without --encoder."""
    files = ("--data", data, "--labels", data / "train.csv", "--folds", data / "folds.csv")
    shape = SMALL_STACKS if small else ("--backbone", voco_options().backbone)
    preset = read_preset(ClassifierOptions, f"cls/{name}", *files, "--first-weights", "none", *shape)
    options = replace(preset, execution=execution, epochs=100_000)
    inputs, runtime = TrainingInputs.read(options), Runtime.create(options.precision)
    spec = describe_networks(options, inputs)[0].spec
    model = build_model(spec, options, fold=0)
    method = NetworkTraining(runtime, model, spec, options, inputs, inputs.series, name)

    def build_bare(batch: Any) -> Callable[[], None]:
        batch = type(batch)(*(part.to(runtime.device) for part in batch))
        padding = batch.padding if spec.view.is_padded else None
        count, rng = options.organ_slices, sample_rng(0, 0, 0)
        decoded = choose_slices_to_decode(batch, count, rng) if options.organ_loss else None

        def step() -> None:
            method.network.zero_grad()
            with runtime.autocast():
                output = method.network(batch.images, padding, decoded)
            _sum_of_squares([output.logits, output.slice_logits, output.organ_logits]).backward()

        return step

    def open_stacks(cache: Path | None) -> Dataset:
        packed = open_cache(replace(options, cache=cache), spec, inputs)
        dataset = copy.copy(method.dataset)
        dataset.reader = StackReader(inputs.prepared, inputs.organs, packed)
        return dataset

    return Training(
        _loop(method, LoopSettings(10**6, 0, options.lr, options.clip, 0, 1, 1)),
        *("stacks", options.batch, preset.execution),
        build_bare=build_bare,
        open_dataset=open_stacks,
        keys=[Draw(0, number) for number in range(len(method.dataset))],
    )


def _open_segmenter(name: str, data: Path, execution: Execution, small: bool) -> Training:
    files = ("--data", data, "--labelled", data / "labelled.csv")
    preset = read_preset(SegOptions, f"seg/{name}{'_small' * small}", *files)
    series = open_data(preset)
    options = replace(preset, execution=execution, windows=series.window_names)
    runtime = Runtime.create(options.precision)
    method = PairTraining(options, series, runtime, with_first_weights=False)

    def build_bare(batch: Any) -> Callable[[], None]:
        strong = batch.strong.to(runtime.device)
        plain = batch.weak[int(batch.is_labelled.sum()) :].to(runtime.device)

        def step() -> None:
            method.network.zero_grad()
            with torch.no_grad(), runtime.autocast():
                method.ema.module.eval()(plain, plain)
            with runtime.autocast():
                pair = method.network(strong[:, 0], strong[:, 1])
            _sum_of_squares([part for output in pair for part in output]).backward()

        return step

    return Training(
        _loop(method, LoopSettings.of(options)),
        *("slices", options.batch + options.unlabelled_batch, preset.execution),
        build_bare=build_bare,
        open_dataset=lambda cache: SliceDataset(series, replace(options, cache=cache)),
        keys=[
            Key(is_labelled, number)
            for is_labelled in (False, True)
            for number in range(len(method.dataset.parts[is_labelled]))
        ],
    )


_OPENERS = MappingProxyType(
    {
        **{"plus": _open_voco, "v2": _open_voco},
        **{"cnn_lstm": _open_classifier, "organ_aware": _open_classifier, "dual": _open_segmenter},
    }
)


def _loop(method: Method, settings: LoopSettings) -> TrainingLoop:
    return TrainingLoop(method, settings, method.runtime, Path(method.options.output), {})


def _sum_of_squares(outputs: Iterable[Tensor | None]) -> Tensor:
    return sum(output.float().square().mean() for output in outputs if output is not None)
