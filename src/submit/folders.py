"""Metadata in the folders of a bundle and a notebook. No torch: push and submit read them quickly."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from src.core.errors import UserError

CONTENT, CHECKSUMS, DATASET_METADATA = "bundle.json", "SHA256SUMS", "dataset-metadata.json"
NOTEBOOK, KERNEL_METADATA = "predict.ipynb", "kernel-metadata.json"

FINGERPRINT = "bundle_sha256sums"
"""Key in the notebook's metadata: fingerprint of the bundle that its cells expect."""


@dataclass(frozen=True)
class Bundle:
    """Content of `bundle.json`."""

    dataset: str
    """USER/SLUG"""
    models: tuple[str, ...]
    """folders in the bundle, in the order of the post-processing"""
    segmenter: str | None
    """folder of the segmenter"""
    post: str | None
    wheels: dict[str, list[str]]
    """version of Python -> `name==version` of the packages to install"""
    needed: dict[str, str]
    """canonical name of a package that infer.py needs -> range of versions (`>=2.8`)"""


@dataclass(frozen=True)
class Kernel:
    """Description of a Kaggle notebook and its inputs in `kernel-metadata.json` and the notebook."""

    id: str
    """USER/SLUG"""
    competition: str
    dataset: str
    """USER/SLUG of the bundle"""
    fingerprint: str
    """fingerprint of its bundle, see `verify_bundle`"""


def read_bundle(folder: Path) -> Bundle:
    """Read `bundle.json`.

    Raises:
        UserError: the folder is not a bundle of this version of the kit, or its id was edited.
    """
    try:
        content = _read_json(folder / CONTENT)
        bundle = Bundle(**{**content, "models": tuple(content["models"])})
        uploaded_as = _read_json(folder / DATASET_METADATA)["id"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} is not a bundle of this kit: make one with submit.py bundle") from None
    if uploaded_as != bundle.dataset:
        raise UserError(f"{folder / DATASET_METADATA} was changed: make the bundle again with another --id")
    return bundle


def read_kernel(folder: Path) -> Kernel:
    """Read the folder of a notebook.

    Raises:
        UserError: the folder contains no notebook of this version of the kit.
    """
    try:
        metadata, notebook = _read_json(folder / KERNEL_METADATA), _read_json(folder / NOTEBOOK)
        (competition,), (dataset,) = metadata["competition_sources"], metadata["dataset_sources"]
        return Kernel(metadata["id"], competition, dataset, notebook["metadata"][FINGERPRINT])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} holds no notebook with {KERNEL_METADATA} of this kit: make it with submit.py kernel"
        ) from None


def write_checksums(folder: Path) -> None:
    """Write `SHA256SUMS` over every file, in the format of sha256sum."""
    (folder / CHECKSUMS).write_text(_checksums(folder), encoding="utf-8")


def verify_bundle(folder: Path) -> str:
    """Check every file against `SHA256SUMS`; added files are ignored.

    Returns:
        The SHA-256 of `SHA256SUMS`, a fingerprint of the whole bundle.

    Raises:
        UserError: a file was changed or removed, or cannot be read. The notebook would refuse the bundle.
    """
    try:
        expected = (folder / CHECKSUMS).read_bytes()
        found = set(_checksums(folder).splitlines())
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error}): make the bundle again") from None
    if changed := set(expected.decode(errors="replace").splitlines()) - found:
        path = folder / min(line[66:] for line in changed)
        raise UserError(f"{path} was changed or removed: make the bundle again")
    return hashlib.sha256(expected).hexdigest()


def _checksums(folder: Path) -> str:
    """One line per file: 64 hexadecimal digits, two spaces, path. Excludes metadata, which stay here."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path in (folder / CHECKSUMS, folder / DATASET_METADATA):
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    return "".join(lines)


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
