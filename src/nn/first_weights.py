"""Initial weights of a training, and the grey levels and patients that their file records."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from src.core.log import warn
from src.nn.encoder import default_greys, find_encoder_file
from src.nn.encoder_weights import LoadReport, load_encoder, read_tensors

PUBLISHED_ROOTS = ("student.", "teacher.", "backbone.")
"""Prefixes of a backbone in published checkpoints, whose inputs were unnormalised grey levels from 0 to 1."""

Greys = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per window, of grey levels from 0 to 1."""


@dataclass(frozen=True)
class FirstWeights:
    """The result of loading, and the normalisation of the network's input."""

    report: LoadReport
    mean: tuple[float, ...]
    """mean per window, of grey levels from 0 to 1, as the weights were trained"""
    std: tuple[float, ...]


def load_first_weights(
    encoder: nn.Module, path: str | Path, windows: Sequence[str], slices: int = 1, mask_channels: int = 0
) -> FirstWeights:
    """Load an encoder file, a checkpoint of train_voco.py, a published one, or plain weights of timm.

    A file that records no grey levels, or those of other windows, gets the kit's defaults.

    Args:
        encoder: its input channels are `slices` times the windows (the windows of a slice together), then
            the mask channels.
        windows: CT windows of its input. A file that has all of them provides the kernel and grey levels of
            each, in any order.
        mask_channels: number of the last input channels, whose kernels become zero.
    """
    report = load_encoder(encoder, path, mask_channels, tuple(windows) * slices)
    greys = recorded_greys(path, windows) or _greys_of_checkpoint(path, report.root, windows)
    return FirstWeights(report, *greys)


def recorded_greys(path: str | Path, windows: Sequence[str]) -> Greys | None:
    """Read the grey levels that an encoder file records for these windows; None for other files.

    Warns if the encoder was trained on other windows.
    """
    about = find_encoder_file(path)
    if about is None:
        return None
    if not set(windows) - set(about.windows):
        places = [about.windows.index(name) for name in windows]
        return tuple(about.mean[place] for place in places), tuple(about.std[place] for place in places)
    warn(
        f"{path} was trained on the windows {' '.join(about.windows)}, its input is now "
        f"{' '.join(windows)}: the first layer gets other grey levels"
    )
    return (about.mean, about.std) if about.in_channels == len(windows) else default_greys(windows)


def patients_seen_by(path: str | Path) -> tuple[str, ...]:
    """Return the patients that an encoder file records; empty for files without such a record."""
    about = find_encoder_file(path)
    return () if about is None else about.patients


def _greys_of_checkpoint(path: str | Path, root: str, windows: Sequence[str]) -> Greys:
    if root.endswith("encoder."):  # a checkpoint of train_voco.py stores them beside its encoder
        tensors, network = read_tensors(path), root.removesuffix("encoder.")
        stored = [tensors.get(network + name) for name in ("mean", "std")]
        if all(values is not None and len(values) == len(windows) for values in stored):
            return tuple(tuple(values.tolist()) for values in stored)
    elif root.endswith(PUBLISHED_ROOTS):
        return (0.0,) * len(windows), (1.0,) * len(windows)
    return default_greys(windows)
