"""One folder with all that `infer.py` needs on a machine without internet, ready to be a Kaggle dataset."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.core.errors import UserError
from src.core.files import require_writable, write_json
from src.core.log import format_table, say, warn
from src.score.postprocess import read_post
from src.submit.bundle_folder import CONTENT, METADATA, Bundle, write_checksums
from src.submit.loaded_modules import find_loaded
from src.submit.models import check_models, copy_runs, copy_segmenter, warn_of_unfinished
from src.submit.options import KAGGLE_PACKAGES, BundleOptions
from src.submit.packages import (
    KagglePackages,
    Package,
    choose_packages,
    needed_distributions,
    read_kaggle_packages,
    read_ranges,
)
from src.submit.source import copy_source, imported_names, module_names
from src.submit.wheels import download_wheels


def make_bundle(options: BundleOptions) -> list[dict[str, Any]]:
    """Write the bundle, by one rename.

    Returns:
        A row a part: its name, files and size in MB.

    Raises:
        UserError: a model or file that cannot be used, a wheel that does not exist, or an output that is
            something else than a bundle.
    """
    kaggle = read_kaggle_packages(options.kaggle_packages or KAGGLE_PACKAGES)
    weights = None
    if options.post:
        post = read_post(options.post)
        post.require_runs(options.models)
        weights = post.weights
    with _whole_or_absent(options.output) as folder:
        check_models(options.models, weights, options.segmenter)
        for run in options.models:
            warn_of_unfinished(run)
        wheels, needed = _bring_packages(folder, copy_source(folder), kaggle, options.python)
        models = copy_runs(options.models, folder / "models")
        if options.segmenter:
            copy_segmenter(options.segmenter, folder / "segmenter")
        if options.post:
            shutil.copyfile(options.post, folder / "post.json")
        content = Bundle(
            dataset=options.id,
            models=tuple(path.relative_to(folder).as_posix() for path in models),
            segmenter="segmenter" if options.segmenter else None,
            post="post.json" if options.post else None,
            wheels={python: [each.pinned for each in packages] for python, packages in wheels.items()},
            needed=needed,
        )
        write_json(vars(content), folder / CONTENT)
        sizes = measure(folder)
        write_checksums(folder)
        metadata = {"title": options.title, "id": options.id, "licenses": [{"name": "other"}]}
        write_json(metadata, folder / METADATA)
    return sizes


def _bring_packages(
    folder: Path, source: Sequence[Path], kaggle: KagglePackages, pythons: Sequence[str]
) -> tuple[dict[str, list[Package]], dict[str, str]]:
    """Download wheels of what Kaggle lacks, and show which.

    Args:
        source: Python files in `folder`, relative to it.

    Returns:
        What is to be installed for each Python, and all that is needed, with its range.
    """
    ranges = read_ranges(folder / "requirements.txt")
    imported = {name.split(".")[0] for path in source for name in imported_names(folder / path)}
    needed = needed_distributions(imported, find_loaded(folder, module_names(source)), ranges)
    wheels: dict[str, list[Package]] = {}
    for python in pythons:
        wheels[python], remarks = choose_packages(needed, kaggle, ranges, python)
        for remark in remarks:
            warn(f"Python {python}: {remark}")
        download_wheels(wheels[python], python, folder / "wheels")
    say(_explain_choice(wheels))
    return wheels, {name: str(ranges[name].specifier) for name in sorted(needed)}


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
        return "Kaggle has every package that infer.py needs"
    return format_table(
        [
            {"bundled": each.name, "version": each.version, "Python": " ".join(pythons), "why": each.reason}
            for each, pythons in rows.items()
        ]
    )


@contextmanager
def _whole_or_absent(output: Path) -> Iterator[Path]:
    """Yield a folder beside `output`, which takes its place at the end, or goes; an older bundle then stays.

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
        old = work / "old"
        if output.exists():
            output.rename(old)
        try:
            new.rename(output)
        except OSError:
            if old.exists():
                old.rename(output)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
