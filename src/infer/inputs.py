"""What --input names: test images as they are, or a prepared data set."""

import time
from pathlib import Path

from src.core.errors import UserError
from src.core.log import warn
from src.ct.storage import UnreachableTree
from src.data.prepared import PreparedDataset
from src.infer.networks import Networks
from src.infer.raw import RawSource
from src.infer.sources import PreparedSource, StackSource

PAUSES_S = (10.0, 30.0, 60.0)
"""Before another look at a disk that is away. Without its folders there is nothing to predict."""


def require_input(path: Path) -> None:
    """Raises UserError where there is nothing, before networks are loaded."""
    if not path.exists():
        raise UserError(f"no folder or file {path} (--input)")


def open_source(path: Path, networks: Networks) -> StackSource:
    """Open a prepared data set, or test images in the competition's layout, in a folder or a zip.

    Args:
        networks: what is to be fed.

    Raises:
        UserError: neither, or it cannot feed these networks.
    """
    for pause_s in PAUSES_S:
        try:
            return _open(path, networks)
        except UnreachableTree as error:
            warn(f"{error}; trying again in {pause_s:.0f} s")
            time.sleep(pause_s)
    return _open(path, networks)


def _open(path: Path, networks: Networks) -> StackSource:
    kinds = networks.ensemble.stack_kinds()
    if not (path / "dataset.json").exists():
        networks.warn_of_other_masks()
        return RawSource.open(path, kinds, networks.finder and networks.finder.spec)
    if networks.finder is not None:
        raise UserError(f"{path} is a prepared data set: segment.py writes its masks, leave --segmenter out")
    return PreparedSource(PreparedDataset.open(path), kinds)
