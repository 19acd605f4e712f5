"""Weights that training starts from, and what their file says of them: the greys they know, the patients."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from src.core.log import warn
from src.nn.encoder import GREY_MEAN, GREY_STD, LoadReport, load_encoder, read_encoder_file
from src.nn.encoder_weights import read_tensors

PUBLISHED_ROOTS = ("student.", "teacher.", "backbone.")
"""Before a backbone in published checkpoints, whose networks were fed grey levels from 0 to 1 as they are."""


@dataclass(frozen=True)
class FirstWeights:
    """What was loaded, and how the network is to be fed."""

    report: LoadReport
    mean: tuple[float, ...]
    """per window, of grey levels from 0 to 1, as the weights were trained"""
    std: tuple[float, ...]


def load_first_weights(
    encoder: nn.Module, path: str | Path, windows: Sequence[str], slices: int = 1
) -> FirstWeights:
    """Load an encoder file, a checkpoint of train_voco.py, a published one, or plain weights of timm.

    A file that tells no grey levels, or those of other windows, gets the kit's own.

    Args:
        encoder: takes `slices` times the windows as input channels, the windows of a slice together.
        windows: that it is to be shown. A file that knows all of them gives each its own kernel and greys,
            whatever the order.

    Raises:
        UserError: as `load_encoder`.
    """
    channels = len(windows)
    report = load_encoder(encoder, path, windows=tuple(windows) * slices)
    mean, std = (GREY_MEAN,) * channels, (GREY_STD,) * channels
    if tells_of_itself(path):
        about = read_encoder_file(path)
        if not set(windows) - set(about.windows):
            places = [about.windows.index(name) for name in windows]
            mean, std = (tuple(values[place] for place in places) for values in (about.mean, about.std))
        else:
            warn(
                f"{path} saw the windows {' '.join(about.windows)}, it is to be shown {' '.join(windows)}: "
                "its first layer meets other greys"
            )
            if about.in_channels == channels:
                mean, std = about.mean, about.std
    elif report.root.endswith("encoder."):  # a checkpoint of train_voco.py has them beside its encoder
        tensors, network = read_tensors(path), report.root.removesuffix("encoder.")
        stored = [tensors.get(network + name) for name in ("mean", "std")]
        if all(values is not None and len(values) == channels for values in stored):
            mean, std = (tuple(values.tolist()) for values in stored)
    elif report.root.endswith(PUBLISHED_ROOTS):
        mean, std = (0.0,) * channels, (1.0,) * channels
    return FirstWeights(report, mean, std)


def patients_seen_by(path: str | Path) -> tuple[str, ...]:
    """The patients whom an encoder file names; none for files that name nobody."""
    return read_encoder_file(path).patients if tells_of_itself(path) else ()


def tells_of_itself(path: str | Path) -> bool:
    """Whether a file is an encoder file of this kit, with metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            return "in_channels" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
