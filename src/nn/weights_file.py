"""Weights with their description: safetensors files whose metadata describe the network of the tensors.

Every entry of the metadata is JSON. The functions import torch only when they need tensors, so that a command
that only reads a description starts immediately.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open

from src.core.errors import UserError
from src.core.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

Description = TypeVar("Description")
Parse = Callable[[dict[str, Any]], Description]
"""Makes a description of the decoded metadata; a KeyError, TypeError or ValueError means a foreign file."""


def save_weights(path: str | Path, tensors: Mapping[str, "Tensor"], **description: Any) -> None:
    """Write tensors and their description, each entry as JSON, atomically by a rename.

    Equal tensors and descriptions give equal bytes, by which other programs recognise a file.
    """
    from safetensors.torch import save

    # copies, since layers of some networks (CoaT) share tensors, which the format does not allow
    content = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {name: json.dumps(value) for name, value in description.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(_sort_metadata(save(content, metadata)))


def read_description(path: str | Path, kind: str, parse: Parse[Description]) -> Description:
    """Read the description of a file, without its tensors.

    Args:
        kind: expected kind of file, such as `a fold model of train_cls.py`, for error messages.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    require_weights(path, kind)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as {kind} ({error})") from None
    try:
        return parse({name: _decode(text) for name, text in metadata.items()})
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is not {kind}, or comes from another version of the kit") from None


def read_weights(
    path: str | Path, kind: str, parse: Parse[Description]
) -> tuple[Description, dict[str, "Tensor"]]:
    """Read description and tensors of a file, on the CPU. Arguments and errors as in `read_description`."""
    from safetensors.torch import load_file

    description = read_description(path, kind, parse)
    try:
        return description, load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as {kind} ({error})") from None


def require_weights(path: str | Path, kind: str) -> None:
    """Refuse a path that is not a file."""
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}: expected {kind}")


def to_tuples(value: Any) -> Any:
    """Convert lists from JSON back to tuples, at any depth."""
    if isinstance(value, dict):
        return {name: to_tuples(each) for name, each in value.items()}
    return tuple(map(to_tuples, value)) if isinstance(value, list) else value


def _sort_metadata(content: bytes) -> bytes:
    """Return a safetensors file with the entries of its metadata in order: the library takes any order."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # metadata of another program
        return text
