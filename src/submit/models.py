"""The files of a run that `infer.py` reads: finished folds, without checkpoints, tables and logs."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from src.cls.run_folder import find_folds, find_networks, read_about
from src.cls.second_model import SECOND, find_first_level
from src.cls.views import StackView
from src.core.errors import UserError
from src.core.log import warn
from src.seg.model import MODEL as SEGMENTER


def run_files(run: Path) -> list[Path]:
    """What an ensemble reads of a run folder, of the first or the second level, relative to it.

    Raises:
        UserError: no such run, no finished fold, or a file that cannot be read.
    """
    second = sorted(run.glob(f"fold*/{SECOND}"))
    if second:
        files = [path for found in second for path in (found, *find_first_level(found.parent))]
    else:
        files = [path for networks in find_folds(run) for path in networks]
    for path in files:
        read_about(path)
    return [path.relative_to(run) for path in files]


def copy_runs(runs: Sequence[Path], target: Path) -> list[Path]:
    """Copy each run to `target/<number>_<name>`; the folders, in the order of the runs."""
    folders = []
    for number, run in enumerate(runs):
        name = re.sub(r"[^\w.-]+", "_", run.resolve().name)
        folder = target / f"{number}_{name}"
        for path in run_files(run):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / path, folder / path)
        folders.append(folder)
    return folders


def looks_at_organs(run: Path) -> bool:
    """Whether a network of the run is shown organ masks, or what they cut out.

    Raises:
        UserError: the network is not of this version of the kit.
    """
    networks = [run / path for path in run_files(run) if path.name != SECOND]
    return any(_read_view(path).needs_masks for path in networks)


def _read_view(path: Path) -> StackView:
    try:
        with safe_open(path, framework="pt") as file:
            return StackView(**json.loads((file.metadata() or {})["spec"])["view"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is not a fold model of this version of train_cls.py") from None


def find_segmenter(path: Path) -> Path:
    """The file of a segmenter, given as itself or as its run folder.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    found = path / SEGMENTER if path.is_dir() else path
    if not found.is_file():
        raise UserError(f"no {found}: --segmenter takes an output folder of train_seg.py")
    read_about(found)
    return found


def warn_of_unfinished(run: Path) -> None:
    """Name the folds of a run that are left out."""
    is_second = any(run.glob(f"fold*/{SECOND}"))
    folds = sorted(path for path in run.glob("fold*") if path.is_dir())
    done = [path for path in folds if ((path / SECOND).is_file() if is_second else find_networks(path))]
    if len(done) < len(folds):
        left = ", ".join(path.name for path in folds if path not in done)
        warn(f"{run}: {left} not finished, left out of the bundle")
