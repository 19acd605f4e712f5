"""The training steps and forward passes of the README's recipe, at its size, to count or to run."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from counting import Step, draw_noise
from harness import read_preset
from torch import Tensor, nn

from src.cls.model import ClassifierSpec, TraumaClassifier
from src.cls.options import ClassifierOptions
from src.cls.views import StackView
from src.core.targets import CLASS_WEIGHTS
from src.nn.encoder import GREY_MEAN, GREY_STD, default_greys
from src.seg.model import SegmenterPair, SegmenterSpec
from src.seg.options import SegmentOptions, SegOptions
from src.voco.appearance import Appearance, draw_appearance
from src.voco.comparisons import Comparisons, Embeddings, GlobalBases
from src.voco.losses import build_objective
from src.voco.model import TeacherUpdate, build_network, embed_by_both, make_teacher
from src.voco.monitors import Monitors
from src.voco.options import VocoOptions

SIZE = 256
"""Pixels of the prepared slices."""
WINDOWS = ("soft", "organ", "wide")
"""Windows of the prepared slices, which the encoder of the recipe learns from."""
MASKS_BATCH = SegmentOptions.batch
"""Slices that pass the segmenter together."""


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
    crops, bases = options.crops, options.grid_z * options.grid**2
    shape = (options.slices, options.tile, options.tile, options.channels)
    tiles = draw_noise(options.batch, crops, *shape, device=device)
    change = Appearance(options.tile, len(options.windows), device)
    rng = np.random.default_rng(0)
    drawn = [draw_appearance(crops, options.appearance, options.tile, rng) for _ in range(options.batch)]
    changes = torch.from_numpy(np.stack(drawn)).to(device)
    label = torch.rand(options.batch, options.random_crops, bases, device=device).softmax(-1)
    patient = torch.arange(options.batch, device=device)
    objective, monitors = build_objective(options), Monitors(options.batch, device)

    def forward() -> Tensor:
        both = embed_by_both(student, teacher, change(tiles, changes))
        own, targets = (Embeddings.split(each, options.random_crops) for each in both)
        pairs = Comparisons(own, targets, GlobalBases(own.bases, targets.bases, first=0))
        loss = torch.stack(list(objective(pairs, label).values())).sum(0).mean()
        monitors.update(pairs, label, patient, patient)
        return loss

    finish = _finish(student, teacher, amsgrad=True)
    return Step((student, teacher), forward, student, finish)


def segmenter_step(device: torch.device) -> Step:
    options = seg_options()
    pair = _build_pair(options, device).train()
    average = copy.deepcopy(pair).eval()
    views = draw_noise(options.batch + options.unlabelled_batch, *_slice_shape(options), device=device)
    plain = views[: options.unlabelled_batch]

    def forward() -> Tensor:
        with torch.no_grad():
            average.probabilities(plain)
        return sum(answer.logits.float().square().mean() for answer in pair(views, views))

    return Step((pair, average), forward, pair, _finish(pair, average))


def masks_pass(device: torch.device) -> Step:
    options = seg_options()
    pair = _build_pair(options, device).eval()
    images = draw_noise(MASKS_BATCH, *_slice_shape(options), device=device)
    return Step((pair,), lambda: pair.probabilities(images), None)


def classifier_step(device: torch.device) -> Step:
    model, images = _build_classifier(device)
    average = copy.deepcopy(model.train())
    finish = _finish(model, average)
    return Step((model, average), lambda: model(images).logits.float().square().mean(), model, finish)


def prediction_pass(device: torch.device) -> Step:
    """One fold, one flip, a batch of series."""
    model, images = _build_classifier(device)
    model.eval()
    return Step((model,), lambda: model(images).logits, None)


def _build_pair(options: SegOptions, device: torch.device) -> SegmenterPair:
    mean, std = default_greys(WINDOWS)
    networks = (options.backbones, options.decoders, options.decoder_width, WINDOWS, options.slices)
    return _on(SegmenterPair(SegmenterSpec(*networks, SIZE, (mean, mean), (std, std))), device)


def _slice_shape(options: SegOptions) -> tuple[int, int, int]:
    return SIZE, SIZE, options.slices * len(WINDOWS)


def _build_classifier(device: torch.device) -> tuple[TraumaClassifier, Tensor]:
    """The preset, its network with the encoder of the recipe, and a batch for it."""
    options = classifier_options()
    view = StackView(WINDOWS, size=SIZE, crop=options.crop, slices=options.slices)
    grey = (GREY_MEAN,) * len(WINDOWS), (GREY_STD,) * len(WINDOWS)
    prior = {column: weight / 10 for column, weight in CLASS_WEIGHTS.items()}
    spec = ClassifierSpec(voco_options().backbone, view, *grey, hidden=options.hidden, prior=prior)
    images = draw_noise(
        options.batch, options.slices, len(WINDOWS), options.crop, options.crop, device=device
    )
    return _on(TraumaClassifier(spec), device), images


def _finish(network: nn.Module, average: nn.Module, amsgrad: bool = False) -> Callable[[], None]:
    """Clipping, AdamW and a moving average of a network that has its gradients."""
    fused = next(network.parameters()).is_cuda  # counted, without a GPU, by other kernels
    update = TeacherUpdate(average, network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, amsgrad=amsgrad, fused=fused)

    def finish() -> None:
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        update(0.99)

    return finish


def _on(network: nn.Module, device: torch.device) -> nn.Module:
    return network.to(device, memory_format=torch.channels_last)
