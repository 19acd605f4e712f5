"""What a bundle tells of itself, for the commands that take a finished one. No torch: they are quick."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from src.core.errors import UserError

CONTENT, CHECKSUMS, METADATA = "bundle.json", "SHA256SUMS", "dataset-metadata.json"


@dataclass(frozen=True)
class Bundle:
    """`bundle.json`."""

    dataset: str
    """USER/SLUG"""
    models: tuple[str, ...]
    """folders in the bundle, in the order of the post-processing"""
    segmenter: str | None
    """a folder"""
    post: str | None
    wheels: dict[str, list[str]]
    """`name==version` of what is to be installed, for each version of Python"""
    needed: dict[str, str]
    """what infer.py needs, with the versions that it runs with (`>=2.8`): canonical name -> range"""


def read_bundle(folder: Path) -> Bundle:
    """Read `bundle.json`.

    Raises:
        UserError: the folder is not a bundle of this version of the kit.
    """
    try:
        told = json.loads((folder / CONTENT).read_text(encoding="utf-8"))
        return Bundle(**{**told, "models": tuple(told["models"])})
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} is not a bundle of this kit: make one with submit.py bundle") from None


def write_checksums(folder: Path) -> None:
    """`SHA256SUMS` over every file, as sha256sum reads it."""
    (folder / CHECKSUMS).write_text(_sum_up(folder), encoding="utf-8")


def require_unchanged(folder: Path) -> None:
    """Make sure that a bundle holds what it was made of: the notebook would refuse it, hours later.

    Raises:
        UserError: a file was changed or removed, or cannot be read.
    """
    try:
        told = set((folder / CHECKSUMS).read_text(encoding="utf-8").splitlines())
        found = set(_sum_up(folder).splitlines())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be read ({error}): make the bundle again") from None
    if other := sorted(line.split("  ", 1)[-1] for line in told - found):
        raise UserError(f"{folder / other[0]} was changed or removed: make the bundle again")


def _sum_up(folder: Path) -> str:
    """A line a file, but for the file of sums itself and the metadata, which are the uploader's."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path in (folder / CHECKSUMS, folder / METADATA):
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    return "".join(lines)


def read_fingerprint(folder: Path) -> str:
    """SHA-256 of `SHA256SUMS`: one number for all files of a bundle.

    Raises:
        UserError: the folder has none.
    """
    try:
        return hashlib.sha256((folder / CHECKSUMS).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"{folder / CHECKSUMS} cannot be read ({error.strerror}): make the bundle again"
        ) from None


def read_dataset_id(folder: Path) -> str:
    """USER/SLUG of the dataset as the kaggle program reads it.

    Raises:
        UserError: `dataset-metadata.json` is missing or damaged.
    """
    try:
        return json.loads((folder / METADATA).read_text(encoding="utf-8"))["id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / METADATA} cannot be read: {error}") from None
