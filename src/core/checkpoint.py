"""Checkpoints: whole or absent, and never able to run code when they are read."""

import pickle
from pathlib import Path
from typing import Any

import torch

from src.core.errors import UserError
from src.core.files import atomic_path


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, text, and lists or dicts of these) by one rename."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only plain data and tensors are accepted (`weights_only=True`).

    Raises:
        UserError: the file is missing, damaged, or holds objects that would have to be unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"checkpoint {path} cannot be read ({reason}): delete it, or start a new run"
        ) from None
