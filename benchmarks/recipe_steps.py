"""The training steps and forward passes of the README's recipe, at its size, to count or to run."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from cost_2d_vs_3d import Count, count, crops_of, tensors_of
from harness import read_preset, seconds_of
from torch import Tensor, nn

from src.cls.model import ClassifierSpec, TraumaClassifier
from src.cls.options import ClassifierOptions
from src.cls.views import StackView
from src.core.runtime import Runtime
from src.core.targets import CLASS_WEIGHTS
from src.nn.encoder import GREY_MEAN, GREY_STD, default_greys
from src.seg.model import SegmenterPair, SegmenterSpec
from src.seg.options import SegmentOptions, SegOptions
from src.voco.model import build_network, embed_by_both, make_teacher
from src.voco.options import VocoOptions

SIZE = 256
"""Pixels of the prepared slices."""
MASKS_BATCH = SegmentOptions.batch
"""Slices that pass the segmenter together."""
META = torch.device("meta")


class Measurement(NamedTuple):
    seconds: float
    """Median of the runs."""
    peak_bytes: int
    """Of what torch has allocated."""


@dataclass(frozen=True)
class Step:
    """A training step without its optimiser, or a forward pass."""

    networks: tuple[nn.Module, ...]
    forward: Callable[[], Tensor]
    """The loss of a training step; of a forward pass any of its answers."""
    trained: nn.Module | None
    """Whose gradients the step computes; None for a forward pass."""

    def run(self, runtime: Runtime | None = None) -> None:
        """Once, in the precision of a runtime, without one in fp32."""
        if self.trained is None:
            with torch.no_grad():
                self._forward(runtime)
            return
        self.trained.zero_grad()
        self._forward(runtime).backward()

    def _forward(self, runtime: Runtime | None) -> Tensor:
        if runtime is None:
            return self.forward()
        with runtime.autocast():
            return self.forward()


def count_step(build: Callable[[torch.device], Step]) -> Count:
    """Operations and memory in fp32, not run."""
    step = build(META)
    return count(step.run, tensors_of(step.networks))


def measure_step(build: Callable[[torch.device], Step], runtime: Runtime, repeats: int) -> Measurement:
    """Seconds and memory on a GPU, after two runs that set it up."""
    step = build(runtime.device)
    for _ in range(2):
        step.run(runtime)
    torch.cuda.reset_peak_memory_stats()
    seconds = [seconds_of(lambda: step.run(runtime)) for _ in range(repeats)]
    return Measurement(statistics.median(seconds), torch.cuda.max_memory_allocated())


def voco_options() -> VocoOptions:
    return read_preset(VocoOptions, "voco/plus", "--data", "data")


def seg_options() -> SegOptions:
    return read_preset(SegOptions, "seg/dual", "--data", "data")


def classifier_options() -> ClassifierOptions:
    tables = ("--data", "data", "--labels", "train.csv", "--folds", "folds.csv")
    return read_preset(ClassifierOptions, "cls/cnn_lstm", *tables)


def pretraining_step(device: torch.device) -> Step:
    options = voco_options()
    student = build_network(options).train()
    teacher = make_teacher(student, options.shared_backbone).to(device)
    student.to(device)
    shape = (options.batch, crops_of(options), options.slices, options.tile, options.tile)
    tiles = _noise(*shape, len(options.windows), device=device)

    def forward() -> Tensor:
        embeddings, _ = embed_by_both(student, teacher, tiles)
        return embeddings.float().square().mean()

    return Step((student, teacher), forward, student)


def segmenter_step(device: torch.device) -> Step:
    options = seg_options()
    pair, average = _build_pair(options, device).train(), _build_pair(options, device).eval()
    views = _noise(options.batch + options.unlabelled_batch, *_slice_shape(options), device=device)
    plain = views[: options.unlabelled_batch]

    def forward() -> Tensor:
        with torch.no_grad():
            average.probabilities(plain)
        return sum(answer.logits.float().square().mean() for answer in pair(views, views))

    return Step((pair, average), forward, pair)


def masks_pass(device: torch.device) -> Step:
    options = seg_options()
    pair = _build_pair(options, device).eval()
    images = _noise(MASKS_BATCH, *_slice_shape(options), device=device)
    return Step((pair,), lambda: pair.probabilities(images), None)


def classifier_step(device: torch.device) -> Step:
    model, images = _build_classifier(device)
    model.train()
    return Step((model,), lambda: model(images).logits.float().square().mean(), model)


def prediction_pass(device: torch.device) -> Step:
    """One fold, one flip, a batch of series."""
    model, images = _build_classifier(device)
    model.eval()
    return Step((model,), lambda: model(images).logits, None)


def _build_pair(options: SegOptions, device: torch.device) -> SegmenterPair:
    mean, std = default_greys(options.windows)
    networks = (options.backbones, options.decoders, options.decoder_width, options.windows, options.slices)
    return _on(SegmenterPair(SegmenterSpec(*networks, SIZE, (mean, mean), (std, std))), device)


def _slice_shape(options: SegOptions) -> tuple[int, int, int]:
    return SIZE, SIZE, options.slices * len(options.windows)


def _build_classifier(device: torch.device) -> tuple[TraumaClassifier, Tensor]:
    """The preset, its network with the encoder of the recipe, and a batch for it."""
    options = classifier_options()
    windows = ("soft", "organ", "wide")
    view = StackView(windows, size=SIZE, crop=options.crop, slices=options.slices)
    grey = (GREY_MEAN,) * len(windows), (GREY_STD,) * len(windows)
    prior = {column: weight / 10 for column, weight in CLASS_WEIGHTS.items()}
    spec = ClassifierSpec(voco_options().backbone, view, *grey, hidden=options.hidden, prior=prior)
    images = _noise(options.batch, options.slices, len(windows), options.crop, options.crop, device=device)
    return _on(TraumaClassifier(spec), device), images


def _on(network: nn.Module, device: torch.device) -> nn.Module:
    return network.to(device, memory_format=torch.channels_last)


def _noise(*shape: int, device: torch.device) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, device=device)
