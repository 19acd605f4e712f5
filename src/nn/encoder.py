"""Slice encoders: timm backbones, and `encoder.safetensors`, the file that passes them from stage to stage.

The file contains only the backbone, with timm's own names:
`timm.create_model(name, in_chans=C, num_classes=0, checkpoint_path=...)` loads it without changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from src.core.errors import UserError
from src.nn.weights_file import read_description, save_weights, to_tuples

GREY_MEAN, GREY_STD = 0.5, 0.25
"""Rough statistics of 8-bit images of a body, scaled to 0..1: the same for every data set and stage."""


@dataclass(frozen=True)
class EncoderFile:
    """The metadata of an `encoder.safetensors`."""

    name: str
    """timm's name of the backbone"""
    in_channels: int
    mean: tuple[float, ...]
    """mean per window, of grey levels scaled to 0..1"""
    std: tuple[float, ...]
    windows: tuple[str, ...]
    """CT window of each channel of a slice"""
    trained_by: dict[str, Any] = field(default_factory=dict)
    """method, steps, options"""
    patients: tuple[str, ...] = ()
    """patients whose images it was trained on (without labels)"""
    neighbours: int = 1
    """number of adjacent slices in its input; channels are neighbours x windows, grouped by slice"""
    neighbour_mm: float = 0.0
    """distance between neighbours; 0: the next slices"""


def create_encoder(
    name: str, in_channels: int, pretrained: bool = False, drop_path_rate: float = 0.0
) -> nn.Module:
    """Create a timm backbone with global pooling and no classifier: (N, C, H, W) -> (N, D).

    Args:
        pretrained: load ImageNet weights from timm's cache or the network.

    Raises:
        UserError: the weights cannot be loaded, or the backbone does not support stochastic depth.
    """
    require_backbone(name)
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
            f"pretrained weights of {name} cannot be loaded ({reason}): connect once so that timm caches "
            "them, or give --encoder FILE"
        ) from None


def require_backbone(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        UserError: the message suggests similar names.
    """
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:3]
        hint = f"; close names: {', '.join(close)}" if close else ""
        raise UserError(f"timm has no backbone {name!r}{hint}")


def check_input_size(encoder: nn.Module, channels: int, size: int) -> None:
    """Check that the encoder accepts images of `size` pixels, before long work begins.

    Raises:
        UserError: it does not (a vision transformer has a fixed size).
    """
    try:
        with torch.inference_mode():
            encoder.eval()(torch.zeros(1, channels, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the backbone cannot take images of {size} px ({reason}): choose another size or backbone"
        ) from None


def require_true_bf16(encoder: nn.Module, channels: int, size: int) -> None:
    """Check that gradients in bf16 on a CPU are correct for images of `size` pixels.

    If a depthwise convolution with a stride is applied to a map of one pixel, oneDNN leaves a part of its
    weight gradient uninitialised (torch 2.8 to 2.15 on CPUs with AVX512-BF16): often zero, sometimes
    arbitrary.

    Raises:
        UserError: the encoder has such a convolution.
    """
    found = []

    def look(layer: nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
        if layer.groups > 1 and max(layer.stride) > 1 and min(inputs[0].shape[-2:]) == 1:
            found.append(layer)

    hooks = [
        layer.register_forward_pre_hook(look) for layer in encoder.modules() if isinstance(layer, nn.Conv2d)
    ]
    was_training = encoder.training
    with torch.inference_mode():
        encoder.eval()(torch.zeros(1, channels, size, size))
    encoder.train(was_training)
    for hook in hooks:
        hook.remove()
    if found:
        raise UserError(
            f"on a CPU bf16 gives wrong gradients for images of {size} px with this backbone, whose strides "
            "go on where one pixel is left: take larger ones, or --precision fp32"
        )


def encoder_width(encoder: nn.Module) -> int:
    """Return D, the width of the pooled features (some backbones widen after the pooling)."""
    return int(getattr(encoder, "head_hidden_size", None) or encoder.num_features)


def default_greys(windows: Sequence[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per window for networks whose weights do not record any."""
    return (GREY_MEAN,) * len(windows), (GREY_STD,) * len(windows)


def first_kernel_name(encoder: nn.Module) -> str:
    """Return the name of the first convolution's weights (out, C, ...), with C the image channels."""
    return next((name for name, value in encoder.named_parameters() if value.ndim >= 4), "")


def first_kernel(encoder: nn.Module) -> nn.Parameter:
    """Return the weights (out, C, ...) of the first convolution."""
    return encoder.get_parameter(first_kernel_name(encoder))


def save_encoder(path: str | Path, encoder: nn.Module, about: EncoderFile) -> None:
    """Write the backbone's parameters and buffers with their metadata, atomically by a rename."""
    save_weights(path, encoder.state_dict(), **vars(about))


def read_encoder_file(path: str | Path) -> EncoderFile:
    """Read the metadata of an `encoder.safetensors`.

    Raises:
        UserError: the file is missing, damaged or not an encoder file.
    """
    return read_description(path, "an encoder file of train_voco.py", _parse_encoder)


def find_encoder_file(path: str | Path) -> EncoderFile | None:
    """Read the metadata of an encoder file; None for other files, such as checkpoints and timm's weights."""
    try:
        return read_encoder_file(path)
    except UserError:
        return None


def _parse_encoder(metadata: dict[str, Any]) -> EncoderFile:
    known = {name: metadata[name] for name in EncoderFile.__dataclass_fields__ if name in metadata}
    trained_by = known.pop("trained_by", {})
    return EncoderFile(**to_tuples(known), trained_by=trained_by)
