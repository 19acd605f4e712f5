"""Slice encoders: timm backbones, and `encoder.safetensors`, the file in which they travel between stages.

The file holds the backbone alone, under timm's own names, so that
`timm.create_model(name, in_chans=C, num_classes=0, checkpoint_path=...)` takes it as it is.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from src.core.checkpoint import load_checkpoint
from src.core.errors import UserError
from src.core.files import atomic_path

WRAPPER_PREFIXES = ("module.", "student.", "backbone.", "encoder.")
"""What published checkpoints put before the backbone's own tensor names, outermost first in any order."""


GREY_MEAN, GREY_STD = 0.5, 0.25
"""Of a body on an 8-bit window, roughly: constants, so that every data set and every stage shares them."""


@dataclass(frozen=True)
class EncoderFile:
    """The metadata of an `encoder.safetensors`."""

    name: str
    """timm's name of the backbone"""
    in_channels: int
    mean: tuple[float, ...]
    """per channel, of grey levels scaled to 0..1"""
    std: tuple[float, ...]
    windows: tuple[str, ...]
    """the CT window of each channel"""
    trained_by: dict[str, Any] = field(default_factory=dict)
    """method, steps, options"""
    patients: tuple[str, ...] = ()
    """patients whose images it has seen (without labels)"""


@dataclass(frozen=True)
class LoadReport:
    """Which tensors of a file reached the model."""

    matched: tuple[str, ...]
    adapted: tuple[str, ...]
    """matched after a change of the number of input channels"""
    missing: tuple[str, ...]
    """of the model, not in the file"""
    unused: tuple[str, ...]
    """of the file, not in the model"""

    def __str__(self) -> str:
        text = f"{len(self.matched)} tensors matched"
        if self.adapted:
            text += f" ({len(self.adapted)} adapted to the input channels)"
        for label, names in (("missing", self.missing), ("unused", self.unused)):
            text += f", {len(names)} {label}" + (f" ({', '.join(names[:3])}, ...)" if names else "")
        return text


def create_encoder(
    name: str, in_channels: int, pretrained: bool = False, drop_path_rate: float = 0.0
) -> nn.Module:
    """A timm backbone with global pooling and no classifier: (N, C, H, W) -> (N, D).

    Args:
        pretrained: ImageNet weights from timm's cache or the network.

    Raises:
        UserError: timm has no such backbone, or its weights cannot be had.
    """
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:3]
        hint = f"; close names: {', '.join(close)}" if close else ""
        raise UserError(f"timm has no backbone {name!r}{hint}")
    extra = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
    try:
        return timm.create_model(name, pretrained=pretrained, in_chans=in_channels, num_classes=0, **extra)
    except TypeError:
        raise UserError(f"backbone {name} does not take stochastic depth: leave --drop-path at 0") from None
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"pretrained weights of {name} cannot be had ({reason}): connect once so that timm caches them, "
            "or give --encoder FILE"
        ) from None


def check_input_size(encoder: nn.Module, channels: int, size: int) -> None:
    """Make sure that the encoder takes images of `size` pixels, before long work begins.

    Raises:
        UserError: it does not (a vision transformer has one size of its own).
    """
    try:
        with torch.inference_mode():
            encoder.eval()(torch.zeros(1, channels, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the backbone cannot take images of {size} px ({reason})") from None


def encoder_width(encoder: nn.Module) -> int:
    """D, the width of the pooled features (some backbones widen behind the pooling)."""
    return int(getattr(encoder, "head_hidden_size", None) or encoder.num_features)


def save_encoder(path: str | Path, encoder: nn.Module, about: EncoderFile) -> None:
    """Write the backbone's parameters and buffers with their metadata, by one rename."""
    metadata = {key: json.dumps(value) for key, value in about.__dict__.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read_encoder_file(path: str | Path) -> EncoderFile:
    """The metadata of an `encoder.safetensors`.

    Raises:
        UserError: missing, not safetensors, or written by something else.
    """
    try:
        with safe_open(_existing(path), framework="pt") as file:
            raw = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error})") from None
    if "name" not in raw or "in_channels" not in raw:
        raise UserError(f"{path} says no backbone name: give an encoder.safetensors of train_voco.py")
    values = {key: json.loads(raw[key]) for key in EncoderFile.__dataclass_fields__ if key in raw}
    return EncoderFile(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )


def load_encoder(encoder: nn.Module, path: str | Path) -> LoadReport:
    """Put the weights of `path` (safetensors, or a checkpoint of tensors) into `encoder`.

    Wrapper prefixes are removed; where the number of input channels differs, the first kernels are repeated
    over the new channels and rescaled, so that responses keep their size.

    Raises:
        UserError: the file cannot be read, or not one tensor matches.
    """
    source = {_bare_name(name): tensor for name, tensor in _read_tensors(path).items()}
    target = encoder.state_dict()
    loaded, adapted = {}, []
    for name, tensor in source.items():
        if name not in target:
            continue
        if tensor.shape == target[name].shape:
            loaded[name] = tensor
        elif _differs_in_channels_only(tensor, target[name]):
            loaded[name] = adapt_input_channels(tensor, target[name].shape[1])
            adapted.append(name)
    if not any(name in loaded for name, _ in encoder.named_parameters()):
        raise UserError(f"{path} holds no weight of this backbone: was it trained with another --backbone?")
    encoder.load_state_dict(loaded, strict=False)
    return LoadReport(
        matched=tuple(loaded),
        adapted=tuple(adapted),
        missing=tuple(name for name in target if name not in loaded),
        unused=tuple(name for name in source if name not in loaded),
    )


def adapt_input_channels(kernel: torch.Tensor, channels: int) -> torch.Tensor:
    """(out, C, h, w) -> (out, channels, h, w): kernels repeated in order, scaled by C / channels."""
    repeats = -(-channels // kernel.shape[1])
    return kernel.repeat(1, repeats, 1, 1)[:, :channels] * (kernel.shape[1] / channels)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"no encoder file {path}: train_voco.py writes encoder.safetensors into its run folder"
        )
    return path


def _read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    path = _existing(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise UserError(f"{path} is not a safetensors file ({error})") from None
    content = load_checkpoint(path)
    for key in ("state_dict", "model", "net"):
        content = content[key] if isinstance(content.get(key), dict) else content
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def _bare_name(name: str) -> str:
    stripped = True
    while stripped:
        stripped = False
        for prefix in WRAPPER_PREFIXES:
            if name.startswith(prefix):
                name, stripped = name.removeprefix(prefix), True
    return name


def _differs_in_channels_only(source: torch.Tensor, target: torch.Tensor) -> bool:
    return (
        source.ndim == target.ndim == 4
        and source.shape[0] == target.shape[0]
        and source.shape[2:] == target.shape[2:]
    )
