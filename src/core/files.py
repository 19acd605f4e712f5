"""Atomic writes: files and folders are written beside their destination, then renamed."""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` on success and is removed on an error.

    The temporary name keeps the suffix, because writers such as `cv2.imwrite` derive the format from it.

    Raises:
        UserError: the path cannot be written.
    """
    path = Path(path)
    require_writable(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp creates private files
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: str | Path) -> None:
    """Check before long work that its result can be written to `path`, and create its folder.

    Raises:
        UserError: `path` is a folder, or its own folder cannot be made or written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path.parent}: {error.strerror}") from None
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file to write")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write into {path.parent}: no permission")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_table(frame: "pd.DataFrame", path: str | Path) -> None:
    """Write a CSV without index, atomically by a rename; floats in their shortest exact form."""
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def read_exact(path: str | Path, **options: Any) -> "pd.DataFrame":
    """Call `pandas.read_csv` so that floats are read exactly as written, in every version of pandas."""
    import pandas as pd  # not for --help

    # before 3.1 the default is inexact in the last digit; from 3.1 on the option is deprecated
    version = tuple(map(int, pd.__version__.split(".")[:2]))
    exact = {} if version >= (3, 1) else {"float_precision": "round_trip"}
    return pd.read_csv(path, **exact, **options)


def write_json(content: Any, path: str | Path) -> None:
    """Write indented JSON atomically by a rename; keys keep their order."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `folder` at the end, or deleted after an error.

    Each attempt uses its own folder `.<name>.<random>.partial` beside it, so that two workers on the same
    series cannot mix their files. An existing `folder` is replaced.
    """
    partial = _partial(folder)
    partial.mkdir(parents=True)
    try:
        yield partial
        discard(folder)
        os.replace(partial, folder)
    finally:
        discard(partial)


def discard(path: Path) -> None:
    """Delete a file or folder if it exists. It is renamed first, so that it never appears half deleted."""
    aside = _partial(path)
    try:
        os.replace(path, aside)
    except FileNotFoundError:
        return
    if aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
