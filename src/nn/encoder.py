"""Slice encoders: timm backbones, and `encoder.safetensors`, the file that passes them from stage to stage.

The file contains only the backbone, with timm's own names:
`timm.create_model(name, in_chans=C, num_classes=0, checkpoint_path=...)` loads it without changes. If its
metadata contain a size above 0, the backbone was built for images of this size: add `img_size=size`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from packaging.version import Version
from torch import Tensor, nn

from src.core.errors import UserError
from src.core.runtime import torch_seed
from src.nn.depthwise import speed_up_depthwise
from src.nn.weights_file import read_description, save_weights, to_tuples

GREY_MEAN, GREY_STD = 0.5, 0.25
"""Rough statistics of 8-bit images of a body, scaled to 0..1: the same for every data set and stage."""

_SIZE_ERRORS = (AssertionError, RuntimeError, ValueError, ZeroDivisionError)
"""Errors of timm's networks for images of a size that they do not support."""

_ALL_KNOWN = "1.0.31"
"""The first timm with the U-Net features of CoaT and with Swin v2 at sizes that its windows do not divide."""


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
    size: int = 0
    """side in pixels of the images that the backbone was built for; 0 for timm's own, or any"""


def create_encoder(
    name: str, in_channels: int, size: int | None = None, drop_path_rate: float = 0.0
) -> nn.Module:
    """Create a timm backbone with global pooling and no classifier: (N, C, H, W) -> (N, D).

    Its weights are random.

    Args:
        size: side of its images in pixels, for which a transformer may have to be built; None for the size
            of its published weights.

    Raises:
        UserError: timm does not know the name, or the backbone does not support the size or stochastic depth.
    """
    extra = size_arguments(name, size)
    if drop_path_rate:
        extra["drop_path_rate"] = drop_path_rate
    try:
        network = timm.create_model(name, in_chans=in_channels, num_classes=0, **extra)
    except TypeError:
        raise UserError(f"backbone {name} does not take stochastic depth: leave --drop-path at 0") from None
    except _SIZE_ERRORS as error:
        raise _wrong_size(size, error) from None
    speed_up_depthwise(network)
    return network


def size_arguments(name: str, size: int | None) -> dict[str, Any]:
    """Return timm's argument for a backbone on images of `size` pixels; empty if it takes them by default.

    Raises:
        UserError: timm does not know the name.
    """
    require_backbone(name)
    built = 0 if size is None else built_size(name, size)
    return {"img_size": built} if built else {}


def built_size(name: str, size: int) -> int:
    """Return the size that a backbone must be built for to take images of `size` pixels; 0 for timm's own."""
    return 0 if _takes(name, size) else size


@lru_cache
def _takes(name: str, size: int) -> bool:
    """Return whether timm's default network takes images of `size` pixels, or any size as convolutions do."""
    if not timm.get_pretrained_cfg(name).fixed_input_size:  # then it has no argument for the size, either
        return True
    with torch_seed(0), torch.inference_mode():
        try:
            timm.create_model(name, in_chans=1, num_classes=0).eval()(torch.zeros(1, 1, size, size))
        except _SIZE_ERRORS:
            return False
    return True


def newer_timm() -> str:
    """Return the end of a message about a network that a newer timm may build; empty if this one is new."""
    if Version(timm.__version__) >= Version(_ALL_KNOWN):
        return ""
    return f"; some backbones need timm {_ALL_KNOWN} or newer here, this is {timm.__version__}"


def fill_network(network: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Load all weights of a file into the network that was built from its description, in place.

    Raises:
        UserError: timm builds a network of other tensors than the one that the file was written with.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise UserError(
            f"{path} does not fit the network that timm {timm.__version__} builds: it was trained with "
            f"another version of timm, or of the kit{newer_timm()}"
        ) from None


def _wrong_size(size: int | None, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"the backbone cannot take images of {size} px ({reason}): choose a multiple of 32, or another "
        f"backbone{newer_timm()}"
    )


def require_backbone(name: str) -> None:
    """Refuse a name that timm does not know, or a tag after its dot that names none of its weights.

    Raises:
        UserError: the message suggests similar names.
    """
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:3]
        hint = f"; close names: {', '.join(close)}" if close else ""
        raise UserError(f"timm has no backbone {name!r}{hint}{newer_timm()}")
    architecture, _, tag = name.partition(".")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:
        known = ", ".join(timm.list_models(f"{architecture}.*", pretrained=True)) or "none"
        raise UserError(f"timm has no weights {tag!r} of {architecture}; it has {known}") from None


def check_input_size(encoder: nn.Module, channels: int, size: int) -> None:
    """Check that the encoder accepts images of `size` pixels, before long work begins.

    Raises:
        UserError: it does not (patches or windows of a transformer must divide the size).
    """
    try:
        with torch.inference_mode():
            encoder.eval()(torch.zeros(1, channels, size, size))
    except _SIZE_ERRORS as error:
        raise _wrong_size(size, error) from None


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
