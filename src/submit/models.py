"""The files of a run that `infer.py` reads: finished folds, without checkpoints, tables and logs."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from src.cls.run_folder import find_folds, find_networks
from src.cls.second_model import SECOND, find_first_level
from src.core.log import warn
from src.infer.networks import Networks
from src.infer.placement import Placement
from src.infer.raw import require_segmenter
from src.seg.model import MODEL as SEGMENTER
from src.seg.model import find_segmenter


def check_models(runs: Sequence[Path], weights: Sequence[float] | None, segmenter: Path | None) -> None:
    """Load everything once, as infer.py will do it for raw test images.

    Args:
        weights: of the runs in the post-processing; equal ones by default.

    Raises:
        UserError: a run or the segmenter cannot be used, or they do not fit each other.
    """
    networks = Networks(Placement.on_cpu(), runs, weights, segmenter)
    require_segmenter(networks.ensemble.stack_kinds(), networks.finder and networks.finder.spec)
    networks.warn_of_other_masks()


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
    return [path.relative_to(run) for path in files]


def copy_runs(runs: Sequence[Path], target: Path) -> list[Path]:
    """Copy each run to `target/<number>_<name>`; the folders, in the order of the runs."""
    folders = []
    for number, run in enumerate(runs):
        # Letters of other alphabets may change on their way through archives and uploads.
        name = re.sub(r"[^\w.-]+", "_", run.resolve().name, flags=re.ASCII)
        folder = target / f"{number}_{name}"
        for path in run_files(run):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / path, folder / path)
        folders.append(folder)
    return folders


def copy_segmenter(segmenter: Path, target: Path) -> None:
    """Copy the file of a segmenter, given as itself or as its run folder, into the folder `target`."""
    target.mkdir()
    shutil.copyfile(find_segmenter(segmenter), target / SEGMENTER)


def warn_of_unfinished(run: Path) -> None:
    """Name the folds of a run that are left out."""
    is_second = any(run.glob(f"fold*/{SECOND}"))
    folds = sorted(path for path in run.glob("fold*") if path.is_dir())
    done = [path for path in folds if ((path / SECOND).is_file() if is_second else find_networks(path))]
    if len(done) < len(folds):
        left = ", ".join(path.name for path in folds if path not in done)
        warn(f"{run}: {left} not finished, left out of the bundle")
