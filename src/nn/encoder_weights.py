"""Load a backbone's weights from files of several layouts: our own, timm's and published checkpoints.

A file may contain two networks (student and teacher) and heads beside the backbone. The backbone is therefore
located by the names of its own tensors: the prefix before them is the `root` of a candidate, and exactly one
candidate is loaded.
"""

import pickle
import re
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from src.core.errors import UserError
from src.nn.encoder import first_kernel_name
from src.nn.first_kernel import mix_channels, shares_by_number
from src.nn.weights_file import read_weights, require_weights

PREFERRED_ROOTS = (
    ("teacher.encoder.", "the teacher is what train_voco.py exports"),
    ("student.", "the student is what the published runs fine-tune"),
)
"""Preference between two complete networks: the first root with this ending, and the reason."""

MAX_MISMATCH = 0.1
"""Maximum share of a backbone's parameters that a file may lack, or have in excess; above it, the file
belongs to another backbone."""

_KIND = "weights of an encoder"


@dataclass(frozen=True)
class LoadReport:
    """Which tensors of a file were loaded into the model."""

    matched: tuple[str, ...]
    adapted: tuple[str, ...]
    """tensors that match after a change of the number of input channels"""
    resized: tuple[str, ...]
    """position embeddings that were resampled for another image size"""
    missing: tuple[str, ...]
    """tensors of the model that the file lacks"""
    unused: tuple[str, ...]
    """tensors of the file that the model lacks"""
    root: str = ""
    """prefix of the loaded tensors' names in the file, such as `module.student.`"""
    reason: str = ""
    """reason for this root, if the file contains several complete backbones"""

    def __str__(self) -> str:
        text = f"{len(self.matched)} tensors matched"
        if self.root:
            text += f" under {self.root}"
        if self.reason:
            text += f" ({self.reason})"
        if self.adapted:
            text += f", {len(self.adapted)} of them adapted to the input channels"
        if self.resized:
            text += f", {len(self.resized)} of them resampled for the image size"
        for label, names in (("missing", self.missing), ("unused", self.unused)):
            text += f", {len(names)} {label}" + (f" ({_count_groups(names)})" if names else "")
        return text


def load_encoder(encoder: nn.Module, path: str | Path) -> LoadReport:
    """Load the weights of `path` (safetensors, or a checkpoint of tensors) into `encoder`, in place.

    The file may contain more: heads are ignored, and of a student and a teacher exactly one is loaded, see
    the report. If the number of input channels differs, the first kernels are mixed by `shares_by_number`.

    Args:
        encoder: a backbone of `create_encoder` or `create_volume_encoder`, or the `timm_backbone` of one of
            segmentation_models_pytorch's `tu-` encoders with all of its stages.

    Raises:
        UserError: the file cannot be read, or holds another backbone.
    """
    return load_tensors(encoder, read_tensors(path), str(path))


def load_tensors(
    encoder: nn.Module,
    tensors: dict[str, Tensor],
    file: str,
    mask_channels: int = 0,
    shares: Tensor | None = None,
) -> LoadReport:
    """Load weights that were read already, as `load_encoder` does.

    Args:
        file: name of their file, for messages.
        mask_channels: number of the last input channels of `encoder` that are masks.
        shares: mixes the first kernels, see `src/nn/first_kernel.py`; default: `shares_by_number`.
    """
    target = encoder.state_dict()
    names = {plain_name(name): name for name in target} | {name: name for name in target}  # in the file: here
    found = find_backbone(names, tensors)
    source = {names[name]: tensor for name, tensor in found.tensors.items() if name in names}
    first = first_kernel_name(encoder)
    adapted = [
        name
        for name, tensor in source.items()
        if first in source
        and _takes_input(tensor, target[name], source[first], target[first])
        and (name == first or tensor.shape != target[name].shape)
    ]
    if adapted:
        held, images = source[first].shape[1], target[first].shape[1] - mask_channels
        shares = shares_by_number(held, images, mask_channels) if shares is None else shares
        if torch.equal(shares, torch.eye(held)):
            adapted = []
    source |= {name: mix_channels(source[name], shares) for name in adapted}
    loaded = {name: tensor for name, tensor in source.items() if tensor.shape == target[name].shape}
    resized = _fit_size(encoder, {name: source[name] for name in source.keys() - loaded.keys()})
    loaded |= resized
    unused = [name for name in found.tensors if names.get(name) not in loaded]
    _refuse_another_backbone(encoder, file, source, loaded, unused)
    encoder.load_state_dict(loaded, strict=False)
    wrapper = found.root.rpartition(".")[0].rpartition(".")  # module. of module.student.
    others = [name.removeprefix("".join(wrapper[:2])) for name in tensors if not name.startswith(found.root)]
    return LoadReport(
        matched=tuple(loaded),
        adapted=tuple(adapted),
        resized=tuple(sorted(resized)),
        missing=tuple(name for name in target if name not in loaded),
        unused=(*unused, *others),
        root=found.root,
        reason=found.reason,
    )


def timm_backbone(encoder: nn.Module) -> nn.Module:
    """Return the timm network inside a `tu-` encoder of segmentation_models_pytorch."""
    features = encoder.model
    return getattr(features, "model", features)  # inside of a FeatureGetterNet


class Candidate(NamedTuple):
    """A backbone found in a file."""

    root: str
    """prefix of its tensors' names in the file, such as `module.student.`"""
    reason: str
    """reason for this one, if the file contains several complete ones; else empty"""
    tensors: dict[str, Tensor]
    """all tensors of the file under the root, by name without it"""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a file, those of nested dictionaries with dotted names (`state_dict.conv1.weight`).

    Raises:
        UserError: the file is missing, damaged, or contains objects that would have to be unpickled.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_weights(path, _KIND, dict)[1]
    require_weights(path, _KIND)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader meets text and other files with errors of many kinds
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            raise UserError(
                f"{path} holds pickled objects beside its tensors (published .pt files hold their optimiser) "
                "and is not read, since that could run code: give the .pth file beside it"
            ) from None
        raise UserError(f"{path} cannot be read as a checkpoint: is it damaged?") from None
    return dict(_flatten(content, ""))


def find_backbone(names: Collection[str], tensors: dict[str, Tensor]) -> Candidate:
    """Find the root of a file with the most tensors of a backbone.

    Args:
        names: the backbone's own tensor names.
        tensors: tensors of the file; if none belongs to the backbone, the root is empty.
    """
    counts = Counter(
        name[: len(name) - len(tail)] for name in tensors for tail in _tails(name) if tail in names
    )
    most = max(counts.values(), default=0)
    root, reason = _prefer([root for root, count in counts.items() if count == most] or [""])
    under = {name.removeprefix(root): tensor for name, tensor in tensors.items() if name.startswith(root)}
    return Candidate(root, reason, under)


def plain_name(name: str) -> str:
    """Return timm's plain name of a features-only backbone's tensor: `stages_0.blocks` is `stages.0.blocks`.

    timm joins the two if it lists a backbone's stages, as segmentation_models_pytorch's `tu-` encoders do.
    """
    return re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name)


def _flatten(content: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield named tensors at any depth. An optimiser's state has numeric keys and is therefore excluded."""
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, dict):
        for key, value in content.items():
            if isinstance(key, str):
                yield from _flatten(value, f"{prefix}{key}.")


def _tails(name: str) -> Iterator[str]:
    """Yield `a.b.c`, `b.c`, `c`."""
    while name:
        yield name
        name = name.partition(".")[2]


def _prefer(roots: list[str]) -> tuple[str, str]:
    if len(roots) == 1:
        return roots[0], ""
    for ending, reason in PREFERRED_ROOTS:
        for root in roots:
            if root.endswith(ending):
                others = ", ".join(other for other in sorted(roots) if other != root)
                return root, f"{others} holds another: {reason}"
    return roots[0], "the first of several that are alike"


def _fit_size(encoder: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Resample position embeddings for the image size of `encoder`, by the function of timm for its family.

    Returns:
        Those of `tensors` (which do not fit the encoder) that fit it afterwards.
    """
    about = getattr(encoder, "pretrained_cfg", None)
    if not tensors or not about:
        return {}
    family = sys.modules[timm.models.model_entrypoint(about["architecture"]).__module__]
    fit = getattr(family, "checkpoint_filter_fn", lambda tensors, encoder: tensors)
    target = encoder.state_dict()
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch, at timm's code
            fitted = fit(tensors, encoder)
    except (AttributeError, AssertionError, KeyError, RuntimeError, TypeError):  # of another backbone
        return {}
    return {
        name: tensor
        for name, tensor in fitted.items()
        if name in target and tensor.shape == target[name].shape
    }


def _takes_input(
    source: torch.Tensor, target: torch.Tensor, first_source: torch.Tensor, first_target: torch.Tensor
) -> bool:
    """Return whether two kernels differ only in input channels, as those of first convolutions do."""
    return (
        source.ndim == target.ndim >= 4
        and source.shape[0] == target.shape[0]
        and source.shape[2:] == target.shape[2:]
        and (source.shape[1], target.shape[1]) == (first_source.shape[1], first_target.shape[1])
    )


def _refuse_another_backbone(
    encoder: nn.Module, file: str, source: dict[str, Tensor], loaded: dict[str, Tensor], unused: list[str]
) -> None:
    """Refuse a deeper or shallower variant, which shares most names and shapes and would be half loaded.

    Also refuse parameters that exist for one image size only and cannot be resampled (an MLP over positions).
    """
    names = [name for name, _ in encoder.named_parameters()]
    missing = [name for name in names if name not in loaded]
    misfits = [name for name in missing if name in source]
    parts = tuple({plain_name(f"{name.split('.')[0]}.") for name in names})
    strange = [name for name in unused if name.startswith(parts)]
    problem = ""
    if len(missing) > MAX_MISMATCH * len(names):
        problem = f"lacks {len(missing)} of the {len(names)} weights of this backbone ({missing[0]}, ...)"
    elif len(strange) > MAX_MISMATCH * len(names):
        problem = f"holds {len(strange)} weights that this backbone has no place for ({strange[0]}, ...)"
    elif misfits:
        problem = f"holds {misfits[0]} of another shape"
    if problem:
        raise UserError(f"{file} {problem}: was it trained with another --backbone or image size?")


def _count_groups(names: Iterable[str]) -> str:
    """Count tensors by the part of the file or network that they belong to: `teacher 358, classifier 2`."""
    groups = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{group} {count}" for group, count in groups.most_common())
