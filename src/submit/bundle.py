"""Write a bundle: everything that `infer.py` needs on a machine without internet, as a Kaggle dataset."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.cls.fold_models import find_first_level, find_folds, find_second_levels, fold_folders
from src.core.errors import UserError
from src.core.files import require_writable, whole_folder, write_json
from src.core.log import format_table, say, warn
from src.infer.ensemble import Ensemble
from src.infer.stack_sources import require_segmenter
from src.score.postprocess import read_post
from src.seg.model import MODEL as SEGMENTER
from src.seg.model import find_segmenter
from src.submit.folders import CONTENT, DATASET_METADATA, Bundle, write_checksums
from src.submit.options import KAGGLE_PACKAGES, BundleOptions
from src.submit.packages import (
    KagglePackages,
    Package,
    choose_packages,
    download_wheels,
    needed_distributions,
    read_kaggle_packages,
    read_ranges,
)
from src.submit.source import copy_source, find_loaded, imported_names


def make_bundle(options: BundleOptions) -> list[dict[str, Any]]:
    """Write the bundle; an existing one is replaced once the new one is complete.

    Returns:
        One row per part: its name, number of files, and size in MB.

    Raises:
        UserError: a model or file is unusable, a wheel does not exist, or the output is not
            a bundle.
    """
    output = options.output
    if output.is_symlink() or output.is_file():
        raise UserError(f"{output} is not a folder: --output names the folder of a bundle")
    if output.is_dir() and any(output.iterdir()) and not (output / CONTENT).is_file():
        raise UserError(f"{output} contains something other than a bundle: name another --output")
    require_writable(output.parent / CONTENT)
    kaggle = read_kaggle_packages(options.kaggle_packages or KAGGLE_PACKAGES)
    weights = None
    if options.post:
        post = read_post(options.post)
        post.require_runs(options.models)
        weights = post.weights
    check_models(options.models, weights, options.segmenter)
    with whole_folder(output) as folder:
        wheels, needed = _bundle_packages(folder, copy_source(folder), kaggle, options.python)
        models = [copy_run(run, folder / "models", number) for number, run in enumerate(options.models)]
        if options.segmenter:
            (folder / "segmenter").mkdir()
            shutil.copyfile(find_segmenter(options.segmenter), folder / "segmenter" / SEGMENTER)
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
        sizes = _measure(folder)
        write_checksums(folder)
        metadata = {"title": options.title, "id": options.id, "licenses": [{"name": "other"}]}
        write_json(metadata, folder / DATASET_METADATA)
    return sizes


def check_models(runs: Sequence[Path], weights: Sequence[float] | None, segmenter: Path | None) -> None:
    """Load all models once, as infer.py does for raw test images.

    Args:
        weights: weights of the runs in the post-processing; equal by default.

    Raises:
        UserError: a run or the segmenter is unusable, or they do not match.
    """
    ensemble = Ensemble(runs, weights, segmenter)
    require_segmenter(ensemble.stack_kinds, ensemble.segmenter)


def run_files(run: Path) -> list[Path]:
    """List the files of a run, first or second level, that infer.py reads, relative to the run.

    Raises:
        UserError: no such run, no finished fold, or a file that cannot be read.
    """
    second = find_second_levels(run)
    if second:
        files = [path for found in second for path in (found, *find_first_level(found.parent))]
    else:
        files = [path for networks in find_folds(run) for path in networks]
    return [path.relative_to(run) for path in files]


def copy_run(run: Path, target: Path, number: int) -> Path:
    """Copy the finished folds of a run to `target/<number>_<name>` and return it; warn of unfinished ones."""
    # Archives and uploads may change non-ASCII letters.
    name = re.sub(r"[^\w.-]+", "_", run.resolve().name, flags=re.ASCII)
    folder = target / f"{number}_{name}"
    files = run_files(run)
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / path, folder / path)
    finished = {path.parts[0] for path in files}
    folds = [path.name for path in fold_folders(run)]
    if unfinished := [name for name in folds if name not in finished]:
        warn(f"{run}: {', '.join(unfinished)} not finished, left out of the bundle")
    return folder


def _bundle_packages(
    folder: Path, source: Sequence[Path], kaggle: KagglePackages, pythons: Sequence[str]
) -> tuple[dict[str, list[Package]], dict[str, str]]:
    """Download wheels of the packages that Kaggle lacks, and print a table of them.

    Args:
        source: Python files, relative to `folder`.

    Returns:
        The packages to install for each Python, and the ranges of all needed packages.
    """
    ranges = read_ranges(folder / "requirements.txt")
    imported = {name.split(".")[0] for path in source for name in imported_names(folder / path)}
    needed = needed_distributions(imported, find_loaded(folder, source), ranges)
    wheels = {python: choose_packages(needed, kaggle, ranges, python) for python in pythons}
    pythons_of: dict[Package, list[str]] = {}
    for python, packages in wheels.items():
        download_wheels(packages, python, folder / "wheels")
        for package in packages:
            pythons_of.setdefault(package, []).append(python)
    rows = [
        {"bundled": each.name, "version": each.version, "Python": " ".join(names), "why": each.reason}
        for each, names in pythons_of.items()
    ]
    say(format_table(rows) if rows else "Kaggle has every package that infer.py needs")
    return wheels, {name: str(ranges[name].specifier) for name in sorted(needed)}


def _measure(folder: Path) -> list[dict[str, Any]]:
    """Return number of files and MB for each part of a bundle, and for the total."""
    sizes: dict[str, list[int]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        parts = path.relative_to(folder).parts
        is_model = parts[0] == "models"
        name = "/".join(parts[:2]) if is_model else parts[0] if len(parts) > 1 else "other files"
        sizes.setdefault(name, []).append(path.stat().st_size)
    sizes["all"] = [size for each in sizes.values() for size in each]
    return [{"part": name, "files": len(each), "MB": sum(each) / 1e6} for name, each in sizes.items()]
