"""First weights of a training: ImageNet weights or those of a file, and the grey levels of their input."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from src.nn.encoder import default_greys, find_encoder_file
from src.nn.encoder_weights import LoadReport, find_backbone, load_tensors, plain_name, read_tensors
from src.nn.first_kernel import shares_by_window
from src.nn.imagenet import (
    PACKAGE_GREYS,
    backbone_name,
    describe_imagenet,
    greys_of_colours,
    has_imagenet,
    read_imagenet,
    read_package,
)
from src.nn.weights_file import require_weights

PUBLISHED_ROOTS = ("student.", "teacher.", "backbone.")
"""Prefixes of a backbone in published checkpoints, whose inputs were unnormalised grey levels from 0 to 1."""

Source = str | Path
"""imagenet, package, none, or a file."""

KIND = "weights of an encoder (--first-weights also takes imagenet, package and none)"
"""What a file of first weights contains, for error messages."""

Greys = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per window, of grey levels from 0 to 1."""


@dataclass(frozen=True)
class FirstWeights:
    """First weights that were loaded, and the normalisation of the network's input."""

    name: str
    """description of their source"""
    report: LoadReport | None
    """None if the weights are random"""
    mean: tuple[float, ...]
    """mean per window, of grey levels from 0 to 1, as the weights were trained"""
    std: tuple[float, ...]

    def __str__(self) -> str:
        return self.name if self.report is None else f"{self.name}: {self.report}"


def load_first_weights(
    encoder: nn.Module, source: Source, windows: Sequence[str], slices: int = 1, mask_channels: int = 0
) -> FirstWeights:
    """Load the weights of `source` into an encoder, in place.

    A file may be an encoder file, a checkpoint of train_voco.py, a published one, or plain weights of timm.

    Args:
        encoder: its input channels are `slices` times the windows (the windows of a slice together), then
            the mask channels.
        windows: CT windows of its input. A file that has all of them provides the kernel and grey levels of
            each, in any order.
        mask_channels: number of the last input channels, whose kernels become zero.

    Raises:
        UserError: the source cannot be read, or does not fit the backbone.
    """
    greys = first_greys(encoder, source, windows)
    if source == "none":
        hint = " (--first-weights imagenet is usually much better)" if has_imagenet(encoder) else ""
        return FirstWeights(f"random{hint}", None, *greys)
    name, tensors = _read_source(encoder, source)
    about, shares = find_encoder_file(source), None
    if about is not None and not set(windows) - set(about.windows):
        shares = shares_by_window(about.windows, about.neighbours, windows, slices, mask_channels)
    return FirstWeights(name, load_tensors(encoder, tensors, name, mask_channels, shares), *greys)


def first_greys(encoder: nn.Module, source: Source, windows: Sequence[str]) -> Greys:
    """Return the grey levels of an input with these windows for the weights of `source`.

    Args:
        encoder: a network of the backbone, with any weights.

    Raises:
        UserError: the source is a file that cannot be read.
    """
    if source == "none":
        return default_greys(windows)
    if source == "package":
        return greys_of_colours(*PACKAGE_GREYS, windows)
    if source == "imagenet":
        return _timm_greys(encoder, windows)
    require_weights(source, KIND)
    return recorded_greys(source, windows) or _greys_of_checkpoint(encoder, source, windows)


def recorded_greys(path: Source, windows: Sequence[str]) -> Greys | None:
    """Read the grey levels that an encoder file records for these windows; None for other files."""
    about = find_encoder_file(path)
    if about is None:
        return None
    if not set(windows) - set(about.windows):
        places = [about.windows.index(name) for name in windows]
        return tuple(about.mean[place] for place in places), tuple(about.std[place] for place in places)
    return (about.mean, about.std) if len(about.mean) == len(windows) else default_greys(windows)


def patients_seen_by(source: Source) -> tuple[str, ...]:
    """Return the patients that an encoder file records; empty for sources without such a record."""
    about = find_encoder_file(source)
    return () if about is None else about.patients


def _read_source(encoder: nn.Module, source: Source) -> tuple[str, dict[str, Tensor]]:
    if source == "imagenet":
        return f"ImageNet weights of {backbone_name(encoder)}", read_imagenet(encoder)
    if source == "package":
        return f"ImageNet weights of {backbone_name(encoder)} (package)", read_package(encoder)
    return str(source), read_tensors(source)


def _greys_of_checkpoint(encoder: nn.Module, path: Source, windows: Sequence[str]) -> Greys:
    """Return the grey levels of a file that is no encoder file."""
    tensors = read_tensors(path)
    names = {plain_name(name) for name in encoder.state_dict()}
    root = find_backbone(names, tensors).root
    if root.endswith("encoder."):  # a checkpoint of train_voco.py stores them beside its encoder
        network = root.removesuffix("encoder.")
        stored = [tensors.get(network + name) for name in ("mean", "std")]
        if all(values is not None and len(values) == len(windows) for values in stored):
            return tuple(tuple(values.tolist()) for values in stored)
        return default_greys(windows)
    if root.endswith(PUBLISHED_ROOTS):
        return (0.0,) * len(windows), (1.0,) * len(windows)
    return _timm_greys(encoder, windows)  # plain weights of timm


def _timm_greys(encoder: nn.Module, windows: Sequence[str]) -> Greys:
    about = describe_imagenet(encoder)
    return greys_of_colours(about["mean"], about["std"], windows) if about else default_greys(windows)
