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


def differing_options(saved: dict[str, Any], current: dict[str, Any], free: tuple[str, ...]) -> list[str]:
    """Names of options that differ between a checkpoint and this run, save those `free` to change."""
    names = [*saved, *(name for name in current if name not in saved)]
    return [name for name in names if name not in free and saved.get(name) != current.get(name)]


def find_checkpoint(output: Path, resume: str) -> Path | None:
    """The checkpoint that `--resume` names: `last.pt` of the run where it exists, none, or the given path."""
    last = output / "last.pt"
    if resume == "auto":
        return last if last.exists() else None
    return None if resume == "never" else Path(resume)


def read_own_checkpoint(
    path: Path, script: str, keys: set[str], identity: dict[str, Any], free: tuple[str, ...]
) -> dict[str, Any]:
    """Read a checkpoint that a run is to continue, and make sure that it is this run's.

    Args:
        script: that writes such checkpoints.
        keys: what it holds besides the identity.
        identity: what must be equal: `options`, and `series`, a digest of the data in their order.
        free: options that may differ all the same.

    Raises:
        UserError: it cannot be read, is not the script's, or belongs to other options or other series.
    """
    saved = load_checkpoint(path)
    if not keys | identity.keys() <= saved.keys():
        raise UserError(f"{path} is not a checkpoint of {script}")
    changed = differing_options(saved["options"], identity["options"], free)
    if changed:
        name = changed[0]
        raise UserError(
            f"{path} was written with --{name.replace('_', '-')} {saved['options'].get(name)}, not "
            f"{identity['options'].get(name)}: keep it, or start anew with --resume never or another --output"
        )
    if saved["series"] != identity["series"]:
        raise UserError(
            f"{path} was trained on other series than --data holds now: "
            "start anew with --resume never or another --output"
        )
    return saved


def clear_run(output: Path, patterns: tuple[str, ...], keep: str | None) -> None:
    """Delete what an earlier run left in the folder, so that nothing of it is taken for the new one's.

    Args:
        patterns: of the files, as `Path.glob` takes them.
        keep: a file that the new run starts from, which may be among them.
    """
    for pattern in (*patterns, "last.pt", ".last-*.pt", "metrics.csv", "curves.png", "events.*"):
        for path in output.glob(pattern):
            if not (keep and Path(keep).exists() and path.samefile(keep)):
                path.unlink()
