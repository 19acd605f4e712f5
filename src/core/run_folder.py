"""Folders that a program fills over many hours: how it claims, recognises and refuses them.

A record in the folder (a JSON file, or the checkpoint of a training) stores options and digests of the
inputs. A restarted program continues if the record matches, and refuses otherwise.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.core.config import option_flag
from src.core.errors import UserError
from src.core.files import discard, write_json

if TYPE_CHECKING:
    import pandas as pd

ANOTHER_OUTPUT = "choose another --output"
FROM_SCRATCH = f"start from scratch with --resume never, or {ANOTHER_OUTPUT}"


def require_same(
    where: Path,
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    free: Iterable[str] = (),
    named: Mapping[str, str] | None = None,
    advice: str = FROM_SCRATCH,
) -> None:
    """Refuse to continue a result that was made with different options or inputs.

    Args:
        where: folder or checkpoint, for the message.
        saved, current: options and inputs of the existing result and of this run; `options` may be a dict.
        free: options that may differ.
        named: description of entries that are not options, such as `{"series": "other series"}`.

    Raises:
        UserError: an entry differs; the message contains the first one.
    """
    named = named or {}
    for name, before, now in _pairs(saved, current):
        if name not in free and before != now:
            what = named.get(name) or f"{option_flag(name)} {_in_words(before)}, not {_in_words(now)}"
            raise UserError(f"{where} was made with {what}: {advice}")


def differing_options(
    saved: Mapping[str, Any], current: Mapping[str, Any], free: Iterable[str] = ()
) -> list[str]:
    """Return the names of options that differ between a record and this run, except the `free` ones."""
    return [name for name, before, now in _pairs(saved, current) if name not in free and before != now]


def claim_folder(
    folder: Path,
    record_name: str,
    record: dict[str, Any],
    *,
    kind: str,
    leftovers: Iterable[str] = (),
    overwrite: bool = False,
    kept: Iterable[str] = (),
    **comparison: Any,
) -> bool:
    """Claim the existing `folder` for the result that `record` describes.

    Args:
        record_name: name of the JSON file.
        kind: content of the folder, for messages: "a prepared data set".
        leftovers: patterns of files that a killed run may have left; these are deleted.
        overwrite: delete the content except the record (so that a run that is killed meanwhile can be
            repeated) and `kept`, instead of comparing.
        comparison: `free`, `named` and `advice` of `require_same`.

    Returns:
        Whether a record existed.

    Raises:
        UserError: the folder has other content, or was made with different options or inputs.
    """
    path = folder / record_name
    unwanted = {item for pattern in leftovers for item in folder.glob(pattern)}
    saved = read_record(path, kind)
    if saved is None and set(folder.iterdir()) - unwanted:
        raise UserError(f"{folder} contains something other than {kind}: {ANOTHER_OUTPUT}")
    if saved is not None and overwrite:
        unwanted = {item for item in folder.iterdir() if item.name not in {record_name, *kept}}
    elif saved is not None:
        require_same(folder, saved, record, **comparison)
    for item in unwanted:
        discard(item)
    write_json(record, path)
    return saved is not None


def read_record(path: Path, kind: str) -> dict[str, Any] | None:
    """Read the record of a folder, None where there is none.

    Raises:
        UserError: the record is damaged.
    """
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError
    except ValueError:
        raise UserError(
            f"{path} is damaged, so {path.parent} is not known for {kind}: {ANOTHER_OUTPUT}"
        ) from None
    return record


def digest_rows(table: "pd.DataFrame") -> str:
    """Checksum of a table of series that depends on its rows and their order."""
    rows = zip(*(table[column].astype(str) for column in table), strict=True)
    return hashlib.sha256("\n".join(map("/".join, rows)).encode()).hexdigest()


def find_checkpoint(output: Path, resume: str) -> Path | None:
    """Return the checkpoint for `--resume`: the run's `last.pt` if it exists, none, or the given path."""
    last = output / "last.pt"
    if resume == "auto":
        return last if last.exists() else None
    return None if resume == "never" else Path(resume)


def clear_training(folder: Path, patterns: Iterable[str], keep: Iterable[str | Path] = ()) -> None:
    """Delete the output of an earlier training, so that it cannot be mistaken for the new one's.

    Args:
        patterns: `Path.glob` patterns of files and folders to delete, besides those of every training.
        keep: files that the new run starts from, which may match the patterns.
    """
    kept = [Path(file) for file in keep if Path(file).exists()]
    for pattern in (*patterns, "last.pt", ".last-*.pt", "metrics.csv", "curves.png", "events.*"):
        for path in folder.glob(pattern):
            if not any(path.samefile(file) for file in kept):
                discard(path)


_held: set[int] = set()  # folders that this process holds


def _let_go_in_child() -> None:
    """Release the folders in a forked process, such as a loader's worker, which would else keep them held."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def only_writer(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Create `folder` and lock it against other runs that would write to it. A killed run releases it.

    Args:
        wait: wait for another run that holds the lock, which must do so for moments only.

    Raises:
        UserError: another run holds the lock, or the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(f"another run is writing to {folder}: wait for it, or name another") from None
        except OSError:
            pass  # a file system that cannot lock a folder, such as NFS
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def is_in_use(folder: Path) -> bool:
    """Return whether a run holds the lock of an existing `folder`."""
    try:
        with only_writer(folder):
            return False
    except UserError:
        return True


def _pairs(saved: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in (*saved, *(name for name in current if name not in saved)):
        before, now = saved.get(name), current.get(name)
        if name == "options" and isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _pairs(before, now)
        else:
            yield name, before, now


def _in_words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
