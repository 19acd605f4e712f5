"""Slice encoders: timm backbones, and `encoder.safetensors`, the file in which they travel between stages.

The file holds the backbone alone, under timm's own names, so that
`timm.create_model(name, in_chans=C, num_classes=0, checkpoint_path=...)` takes it as it is.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from src.core.errors import UserError
from src.core.files import atomic_path
from src.nn.encoder_weights import (
    adapt_input_channels,
    existing_encoder,
    find_backbone,
    plain_name,
    read_tensors,
)

MOST_STRANGE = 0.1
"""Share of a backbone's parameters that a file may lack, or have beside; with more, it is of another one."""

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
    root: str = ""
    """what stood before the names of the tensors taken, such as `module.student.`"""
    reason: str = ""
    """why these, where the file holds another network as complete"""

    def __str__(self) -> str:
        text = f"{len(self.matched)} tensors matched"
        if self.root:
            text += f" under {self.root}"
        if self.reason:
            text += f" ({self.reason})"
        if self.adapted:
            text += f", {len(self.adapted)} of them adapted to the input channels"
        for label, names in (("missing", self.missing), ("unused", self.unused)):
            text += f", {len(names)} {label}" + (f" ({_count_groups(names)})" if names else "")
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
        raise UserError(
            f"the backbone cannot take images of {size} px ({reason}): choose another size or backbone"
        ) from None


def require_true_bf16(encoder: nn.Module, channels: int, size: int) -> None:
    """Make sure that gradients in bf16 on a CPU are right for images of `size` pixels.

    Where a depthwise convolution strides over a map of one pixel, oneDNN leaves a part of its weights'
    gradient as the memory was (torch 2.8 to 2.15 on CPUs with AVX512-BF16): often zero, sometimes anything.

    Raises:
        UserError: the encoder has such a place.
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
        with safe_open(existing_encoder(path), framework="pt") as file:
            raw = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error})") from None
    if "name" not in raw or "in_channels" not in raw:
        raise UserError(f"{path} says no backbone name: give an encoder.safetensors of train_voco.py")
    values = {key: json.loads(raw[key]) for key in EncoderFile.__dataclass_fields__ if key in raw}
    return EncoderFile(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )


def load_encoder(
    encoder: nn.Module, path: str | Path, mask_channels: int = 0, windows: Sequence[str] = ()
) -> LoadReport:
    """Put the weights of `path` (safetensors, or a checkpoint of tensors) into `encoder`, in place.

    The file may hold more: heads are left, and of a student and a teacher exactly one is taken, as the report
    says. Where the input channels differ, the first kernels are taken by window, or else repeated over the
    new channels, and rescaled, so that responses keep their size.

    Args:
        encoder: a backbone of `create_encoder` or `create_volume_encoder`, or the `encoder.model` of one of
            segmentation_models_pytorch's `tu-` networks with all of its stages.
        mask_channels: the last input channels of `encoder` that are masks, no images; their kernels are zero.
        windows: of the image channels of `encoder`; the first kernel is adapted to them where the file knows
            all of them, and not in this order.

    Raises:
        UserError: the file cannot be read, or holds another backbone.
    """
    target = encoder.state_dict()
    tensors = read_tensors(path)
    names = {plain_name(name): name for name in target} | {name: name for name in target}  # in the file: here
    found = find_backbone(names, tensors)
    source = {names[name]: tensor for name, tensor in found.tensors.items() if name in names}
    first = _first_kernel(encoder)
    sources = _channels_by_window(path, windows) if windows else None
    loaded, adapted = {}, []
    for name, tensor in source.items():
        is_input = first in source and _takes_input(tensor, target[name], source[first], target[first])
        is_other = tensor.shape != target[name].shape or mask_channels > 0 or sources is not None
        if is_input and is_other and (name == first or tensor.shape != target[name].shape):
            loaded[name] = adapt_input_channels(tensor, target[name].shape[1], mask_channels, sources)
            adapted.append(name)
        elif tensor.shape == target[name].shape:
            loaded[name] = tensor
    unused = [name for name in found.tensors if names.get(name) not in loaded]
    _refuse_another_backbone(encoder, path, loaded, unused)
    encoder.load_state_dict(loaded, strict=False)
    wrapper = found.root.rpartition(".")[0].rpartition(".")  # module. of module.student.
    others = [name.removeprefix("".join(wrapper[:2])) for name in tensors if not name.startswith(found.root)]
    return LoadReport(
        matched=tuple(loaded),
        adapted=tuple(adapted),
        missing=tuple(name for name in target if name not in loaded),
        unused=(*unused, *others),
        root=found.root,
        reason=found.reason,
    )


def first_kernel(encoder: nn.Module) -> nn.Parameter:
    """The weights (out, C, ...) of the first convolution, where the image's channels come in."""
    return encoder.get_parameter(_first_kernel(encoder))


def _first_kernel(encoder: nn.Module) -> str:
    return next((name for name, value in encoder.named_parameters() if value.ndim >= 4), "")


def _channels_by_window(path: str | Path, windows: Sequence[str]) -> list[int] | None:
    """The channel of the file's encoder for each window; None if they are its own, or it lacks one."""
    try:
        own = read_encoder_file(path).windows
    except UserError:  # a checkpoint, which tells no windows
        return None
    if tuple(windows) == own or set(windows) - set(own):
        return None
    return [own.index(name) for name in windows]


def _takes_input(
    source: torch.Tensor, target: torch.Tensor, first_source: torch.Tensor, first_target: torch.Tensor
) -> bool:
    """Whether two kernels differ in their input channels alone, as those of the first convolution do."""
    return (
        source.ndim == target.ndim >= 4
        and source.shape[0] == target.shape[0]
        and source.shape[2:] == target.shape[2:]
        and (source.shape[1], target.shape[1]) == (first_source.shape[1], first_target.shape[1])
    )


def _refuse_another_backbone(
    encoder: nn.Module, path: str | Path, loaded: dict[str, torch.Tensor], unused: list[str]
) -> None:
    """A deeper or shallower sibling shares most names and shapes, and would be half loaded without a word."""
    own = [name for name, _ in encoder.named_parameters()]
    missing = [name for name in own if name not in loaded]
    parts = tuple({plain_name(f"{name.split('.')[0]}.") for name in own})
    strange = [name for name in unused if name.startswith(parts)]
    problem = ""
    if len(missing) > MOST_STRANGE * len(own):
        problem = f"lacks {len(missing)} of the {len(own)} weights of this backbone ({missing[0]}, ...)"
    elif len(strange) > MOST_STRANGE * len(own):
        problem = f"holds {len(strange)} weights that this backbone has no place for ({strange[0]}, ...)"
    if problem:
        raise UserError(f"{path} {problem}: was it trained with another --backbone?")


def _count_groups(names: Iterable[str]) -> str:
    """Tensors by the part of the file or network they belong to: `teacher 358, classifier 2`."""
    groups = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{group} {count}" for group, count in groups.most_common())
