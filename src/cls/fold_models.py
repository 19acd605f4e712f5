"""Files of trained networks in a run folder of the first or the second level.

fold0/model.safetensors             network of a fold
fold0/liver/model.safetensors ...   or one per target, in single mode
fold0/second.safetensors            second level of a fold
fold0/first/0/model.safetensors ... first level's networks that it needs, from the same fold of each run
fold0/oof_series.csv                predictions of the held-out series
all0/...                            networks of all patients: the same files but for the predictions
"""

from pathlib import Path
from typing import Any

from src.core.errors import UserError
from src.nn.weights_file import read_description

MODEL = "model.safetensors"
SECOND_LEVEL, FIRST_LEVEL = "second.safetensors", "first"
FOLD_MODEL = "a fold model of train_cls.py"

FOLD_TABLE = "oof_series.csv"
"""Predictions of held-out series in a fold's folder; the run's table of this name joins those of all folds.
The file marks the fold as finished."""


def fold_folders(run: Path) -> list[Path]:
    """Return the folders of the folds of a run, finished or not, then those of networks of all patients."""
    return [path for kind in ("fold*", "all*") for path in sorted(run.glob(kind)) if path.is_dir()]


def is_finished(fold: Path) -> bool:
    """Return whether nothing is left to do in a fold's folder of a first-level run."""
    return bool(find_networks(fold)) if fold.name.startswith("all") else (fold / FOLD_TABLE).exists()


def read_about(path: Path) -> dict[str, Any]:
    """Read what a network's file records: fold, names of the fold's networks, training patients."""
    return read_description(path, FOLD_MODEL, lambda metadata: metadata.get("about", {}))


def find_networks(fold: Path) -> list[Path]:
    """Return the networks in a fold's folder; none if some of them are not trained yet."""
    found = sorted([*fold.glob(MODEL), *fold.glob(f"*/{MODEL}")])
    if not found:
        return []
    all_of_fold = {fold / name / MODEL for name in read_about(found[0]).get("networks", [""])}
    return found if all_of_fold == set(found) else []


def find_folds(run: Path) -> list[list[Path]]:
    """Return the networks of every finished fold of a first-level run.

    Raises:
        UserError: no such folder, or no finished fold in it.
    """
    if not run.is_dir():
        raise UserError(f"no run folder {run}: --models takes output folders of train_cls.py")
    folds = [find_networks(fold) for fold in fold_folders(run)]
    finished = [networks for networks in folds if networks]
    if not finished:
        raise UserError(
            f"{run} holds no finished fold (fold*/{MODEL}, all*/{MODEL}): train_cls.py writes them"
        )
    return finished


def find_second_levels(run: Path) -> list[Path]:
    """Return the file of every finished fold of a second level; none in a first-level run."""
    return sorted(run.glob(f"fold*/{SECOND_LEVEL}"))


def find_first_level(fold: Path) -> list[Path]:
    """Return the first level's networks in a fold's folder of a second level, in the order of the runs.

    Raises:
        UserError: they are missing.
    """
    runs = sorted((fold / FIRST_LEVEL).glob("*"), key=lambda run: int(run.name))
    paths = [path for run in runs for path in sorted(run.rglob("*.safetensors"))]
    if not paths:
        raise UserError(
            f"{fold / FIRST_LEVEL} holds no networks, whose output the second level beside it needs"
        )
    return paths
