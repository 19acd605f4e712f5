"""One folder with all that `infer.py` needs on a machine without internet, ready to be a Kaggle dataset."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.core.errors import UserError
from src.core.files import require_writable, write_json
from src.core.log import format_table, say, warn
from src.score.postprocess import read_post
from src.submit.models import SEGMENTER, copy_runs, find_segmenter, looks_at_organs, warn_of_unfinished
from src.submit.options import IMAGE, BundleOptions
from src.submit.packages import Image, Package, choose_packages, needed_distributions, read_image, read_ranges
from src.submit.source import copy_source, imported_names, module_names
from src.submit.start import Started, start_infer
from src.submit.wheels import download_wheels

CONTENT, CHECKSUMS, METADATA = "bundle.json", "SHA256SUMS", "dataset-metadata.json"


@dataclass(frozen=True)
class Bundle:
    """What a bundle tells of itself."""

    dataset: str
    """USER/SLUG"""
    models: tuple[str, ...]
    """folders in the bundle, in the order of the post-processing"""
    segmenter: str | None
    """a folder"""
    post: str | None
    wheels: dict[str, list[str]]
    """`name==version` of what is to be installed, for each version of Python"""
    infer_options: tuple[str, ...]
    """that the bundled infer.py has"""


def read_bundle(folder: Path) -> Bundle:
    """Read `bundle.json`.

    Raises:
        UserError: the folder is not a bundle of this version of the kit.
    """
    try:
        told = json.loads((folder / CONTENT).read_text(encoding="utf-8"))
        lists = {key: tuple(told[key]) for key in ("models", "infer_options")}
        return Bundle(**{**told, **lists})
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} is not a bundle: make one with submit.py bundle") from None


def make_bundle(options: BundleOptions) -> list[dict[str, Any]]:
    """Write the bundle, by one rename.

    Returns:
        A row a part: its name, files and size in MB.

    Raises:
        UserError: a model or file that cannot be used, a wheel that does not exist, or an output that is
            something else than a bundle.
    """
    image = read_image(options.image or IMAGE)
    on_organs = [run for run in options.models if looks_at_organs(run)]
    if on_organs and not options.segmenter:
        raise UserError(f"{on_organs[0]} looks at organs, which test images come without: give --segmenter")
    if options.segmenter and not on_organs:
        raise UserError("none of these models looks at organs: leave --segmenter out")
    segmenter = find_segmenter(options.segmenter) if options.segmenter else None
    for run in options.models:
        warn_of_unfinished(run)
    if options.post:
        read_post(options.post).require_tables(len(options.models))
    with _whole_or_absent(options.output) as folder:
        files = copy_source(folder)
        started = start_infer(folder, module_names(files))
        wheels = _bring_packages(folder, files, started, image, options.python)
        models = copy_runs(options.models, folder / "models")
        if segmenter:
            _copy(segmenter, folder / "segmenter" / SEGMENTER)
        if options.post:
            _copy(options.post, folder / "post.json")
        content = Bundle(
            dataset=options.id,
            models=tuple(path.relative_to(folder).as_posix() for path in models),
            segmenter="segmenter" if segmenter else None,
            post="post.json" if options.post else None,
            wheels=wheels,
            infer_options=started.options,
        )
        write_json(vars(content), folder / CONTENT)
        sizes = measure(folder)
        write_checksums(folder)
        metadata = {"title": options.title, "id": options.id, "licenses": [{"name": "other"}]}
        write_json(metadata, folder / METADATA)
    return sizes


def _bring_packages(
    folder: Path, files: list[Path], started: Started, image: Image, pythons: Sequence[str]
) -> dict[str, list[str]]:
    """Download wheels of what Kaggle lacks, show which, and tell what is to be installed for each Python."""
    ranges = read_ranges(folder / "requirements.txt")
    imported = {name.split(".")[0] for path in files for name in imported_names(folder / path)}
    needed = needed_distributions(imported, started.loaded, ranges)
    chosen: dict[str, list[Package]] = {}
    for python in pythons:
        chosen[python], remarks = choose_packages(needed, image, ranges, python)
        for remark in remarks:
            warn(f"Python {python}: {remark}")
        download_wheels(chosen[python], python, folder / "wheels")
    say(_explain_choice(chosen))
    return {
        python: [f"{package.name}=={package.version}" for package in packages]
        for python, packages in chosen.items()
    }


def write_checksums(folder: Path) -> None:
    """`SHA256SUMS` over every file, as sha256sum reads it."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def measure(folder: Path) -> list[dict[str, Any]]:
    """Files and MB of each part of a bundle, and of all."""
    rows: dict[str, list[int]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        parts = path.relative_to(folder).parts
        is_model = parts[0] == "models"
        name = "/".join(parts[:2]) if is_model else parts[0] if len(parts) > 1 else "other files"
        rows.setdefault(name, []).append(path.stat().st_size)
    rows["all"] = [size for sizes in rows.values() for size in sizes]
    return [{"part": name, "files": len(sizes), "MB": sum(sizes) / 1e6} for name, sizes in rows.items()]


def _explain_choice(chosen: dict[str, list[Package]]) -> str:
    """A table of the packages that are bundled, and for which versions of Python."""
    rows: dict[Package, list[str]] = {}
    for python, packages in chosen.items():
        for package in packages:
            rows.setdefault(package, []).append(python)
    if not rows:
        return "Kaggle's image has every package that infer.py needs"
    return format_table(
        [
            {"bundled": each.name, "version": each.version, "Python": " ".join(pythons), "why": each.reason}
            for each, pythons in rows.items()
        ]
    )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)


@contextmanager
def _whole_or_absent(output: Path) -> Iterator[Path]:
    """Yield a folder beside `output`, which takes its place at the end, or goes.

    Raises:
        UserError: nothing can be written there, or something else than a bundle is there.
    """
    if output.is_symlink() or output.is_file():
        raise UserError(f"{output} is not a folder: --output names the folder of a bundle")
    if output.is_dir() and any(output.iterdir()) and not (output / CONTENT).is_file():
        raise UserError(f"{output} holds something else than a bundle: name another --output")
    require_writable(output.parent / CONTENT)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        (new := work / "new").mkdir()
        yield new
        if output.exists():
            output.rename(work / "old")
        new.rename(output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
