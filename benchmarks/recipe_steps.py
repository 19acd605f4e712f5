"""The training steps and forward passes of the README's recipe, at its size, to count or to run."""

import torch
from counting import Step, crops_of, draw_noise, voco_step
from harness import read_preset
from torch import Tensor, nn

from src.cls.model import ClassifierSpec, TraumaClassifier
from src.cls.options import ClassifierOptions
from src.cls.views import StackView
from src.core.targets import CLASS_WEIGHTS
from src.nn.encoder import GREY_MEAN, GREY_STD, default_greys
from src.seg.model import SegmenterPair, SegmenterSpec
from src.seg.options import SegmentOptions, SegOptions
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
    return voco_step(options, device, options.batch, crops_of(options))


def segmenter_step(device: torch.device) -> Step:
    options = seg_options()
    pair, average = _build_pair(options, device).train(), _build_pair(options, device).eval()
    views = draw_noise(options.batch + options.unlabelled_batch, *_slice_shape(options), device=device)
    plain = views[: options.unlabelled_batch]

    def forward() -> Tensor:
        with torch.no_grad():
            average.probabilities(plain)
        return sum(answer.logits.float().square().mean() for answer in pair(views, views))

    return Step((pair, average), forward, pair)


def masks_pass(device: torch.device) -> Step:
    options = seg_options()
    pair = _build_pair(options, device).eval()
    images = draw_noise(MASKS_BATCH, *_slice_shape(options), device=device)
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


def _on(network: nn.Module, device: torch.device) -> nn.Module:
    return network.to(device, memory_format=torch.channels_last)
