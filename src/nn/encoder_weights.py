"""Finding a backbone's weights in files of several layouts: our own, timm's and published checkpoints.

A file may hold two networks (student and teacher) and heads beside the backbone. The backbone is therefore
looked up by the names of its own tensors: whatever stands before them is the `root` of a candidate, and one
candidate is taken whole.
"""

import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from src.core.errors import UserError

PREFERRED_ROOTS = (
    ("teacher.encoder.", "the teacher is what train_voco.py exports"),
    ("student.", "the student is what the published runs fine-tune"),
)
"""Which of two complete networks is taken: the first whose root ends so, and why."""


class Candidate(NamedTuple):
    """A backbone found in a file."""

    root: str
    """what stands before the names of its tensors in the file, such as `module.student.`"""
    reason: str
    """why this one, where the file holds others as complete; else empty"""
    tensors: dict[str, Tensor]
    """all that the file holds under the root, by name without it"""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file, those of nested dictionaries under dotted names (`state_dict.conv1.weight`).

    Raises:
        UserError: there is no such file, it is damaged, or it holds objects that would have to be unpickled.
    """
    path = existing_encoder(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise UserError(f"{path} is not a safetensors file ({error})") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            raise UserError(
                f"{path} holds pickled objects beside its tensors (published .pt files hold their optimiser) "
                "and is not read, since that could run code: give the .pth file beside it"
            ) from None
        raise UserError(f"{path} cannot be read as a checkpoint: is it damaged?") from None
    return dict(_flatten(content, ""))


def existing_encoder(path: str | Path) -> Path:
    """The path of a file that is there.

    Raises:
        UserError: it is not.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"no encoder file {path}: train_voco.py writes encoder.safetensors into its run folder"
        )
    return path


def find_backbone(names: Collection[str], tensors: dict[str, Tensor]) -> Candidate:
    """The one root of a file under which the most of a backbone's tensors lie.

    Args:
        names: the backbone's own tensor names.
        tensors: those of the file; where not one is the backbone's, the root is empty.
    """
    counts = Counter(
        name[: len(name) - len(tail)] for name in tensors for tail in _tails(name) if tail in names
    )
    most = max(counts.values(), default=0)
    root, reason = _prefer([root for root, count in counts.items() if count == most] or [""])
    under = {name.removeprefix(root): tensor for name, tensor in tensors.items() if name.startswith(root)}
    return Candidate(root, reason, under)


def plain_name(name: str) -> str:
    """timm's plain name of a tensor of a features-only backbone: `stages_0.blocks` is `stages.0.blocks`.

    timm joins the two where it lists a backbone's stages, as segmentation_models_pytorch's `tu-` encoders do.
    """
    return re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name)


def adapt_input_channels(
    kernel: Tensor, channels: int, mask_channels: int = 0, sources: Sequence[int] | None = None
) -> Tensor:
    """A first kernel for other input channels.

    Args:
        kernel: (out, C, ...), of two or three dimensions.
        channels: input channels that it is to have.
        mask_channels: the last of these, which are no image.
        sources: for each image channel the one of the kernel's that it is like; in order, and over again,
            where None.

    Returns:
        (out, channels, ...): for image channels, the kernel's own scaled by C / image channels, so that
        responses keep their size; zero for masks, which training then learns to use.
    """
    images = channels - mask_channels
    order = torch.arange(images) % kernel.shape[1] if sources is None else torch.tensor(list(sources))
    adapted = kernel[:, order] * (kernel.shape[1] / images)
    return torch.cat([adapted, adapted.new_zeros(len(kernel), mask_channels, *kernel.shape[2:])], dim=1)


def _flatten(content: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Optimisers number their state, so that nothing of it has a name to be taken by."""
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, dict):
        for key, value in content.items():
            if isinstance(key, str):
                yield from _flatten(value, f"{prefix}{key}.")


def _tails(name: str) -> Iterator[str]:
    """`a.b.c`, `b.c`, `c`."""
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
