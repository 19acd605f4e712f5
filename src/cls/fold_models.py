"""The files of fold models: a run has folds, a fold has one network or one for each target."""

from pathlib import Path

from src.core.errors import UserError
from src.nn.weights_file import read_description

MODEL = "model.safetensors"
FOLD_MODEL = "a fold model of train_cls.py"


def read_about(path: Path) -> dict:
    """What the file of a network records of its run: fold, networks, training patients."""
    return read_description(path, FOLD_MODEL, lambda metadata: metadata.get("about", {}))


def find_networks(fold: Path) -> list[Path]:
    """The networks of a fold's folder, none where some are still to be trained."""
    found = sorted([*fold.glob(MODEL), *fold.glob(f"*/{MODEL}")])
    if not found:
        return []
    wanted = {fold / name / MODEL for name in read_about(found[0]).get("networks", [""])}
    return found if wanted == set(found) else []


def find_folds(run: Path) -> list[list[Path]]:
    """The networks of every finished fold of a run.

    Raises:
        UserError: no such folder, or no finished fold in it.
    """
    if not run.is_dir():
        raise UserError(f"no run folder {run}: --models takes output folders of train_cls.py")
    folds = [find_networks(fold) for fold in sorted(run.glob("fold*"))]
    finished = [networks for networks in folds if networks]
    if not finished:
        raise UserError(f"{run} holds no finished fold (fold*/{MODEL}): train_cls.py writes them")
    return finished
