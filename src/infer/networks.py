"""All networks of a run on one device: what turns a series as read into probabilities."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.core.errors import UserError
from src.core.log import warn
from src.infer.ensemble import Ensemble, Share
from src.infer.organ_finder import OrganFinder
from src.infer.placement import Placement
from src.infer.sources import ReadSeries, StackKind


@dataclass(frozen=True)
class Care:
    """What costs less memory, or less of a number's range, for the same result."""

    slices_at_once: int | None = None
    """that pass a network together; None is all of a stack"""
    full_precision: bool = False


class Answer(NamedTuple):
    """What the networks say of a series."""

    probabilities: np.ndarray
    """(runs, 13)"""
    organs_s: float
    """seconds that finding organs took"""
    models_s: float


class Networks:
    """An ensemble, and where it needs organs and the input has no masks, what finds them.

    Args:
        runs: run folders, see `Ensemble`.
        segmenter: run folder of train_seg.py.
        flips: see `Ensemble`.

    Raises:
        UserError: a folder without a model, or a segmenter that nobody needs.
    """

    def __init__(
        self,
        placement: Placement,
        runs: Sequence[Path],
        segmenter: Path | None = None,
        flips: tuple[str, ...] | None = None,
    ) -> None:
        self.placement = placement
        self.ensemble = Ensemble(runs, placement, flips)
        self.finder = None if segmenter is None else OrganFinder(segmenter, placement)
        self._on_organs = [kind for kind in self.ensemble.stack_kinds if kind.view.needs_masks]
        if segmenter is not None and not self._on_organs:
            raise UserError(f"none of these models looks at organs: leave --segmenter {segmenter} out")

    @property
    def most_slices(self) -> int:
        """The longest stack."""
        return max(kind.view.slices for kind in self.ensemble.stack_kinds)

    def warn_of_other_masks(self) -> None:
        """Say so where models were trained with true masks and are shown predicted ones."""
        if self.finder is not None and any(kind.view.masks_from == "true" for kind in self._on_organs):
            warn("models trained with true masks are shown predicted ones")

    def predict(self, series: ReadSeries, share: Share, care: Care) -> Answer:
        """Probabilities of a series.

        Raises:
            FloatingPointError: a network gives what is no number.
        """
        started = time.perf_counter()
        with nullcontext() if care.full_precision else self.placement.autocast():
            stacks: dict[StackKind, object] = dict(series.stacks)
            if series.volume is not None:
                stacks |= self.finder.cut(series.volume, self._on_organs, care.slices_at_once)
            found = time.perf_counter()
            probabilities = self.ensemble.predict(stacks, share, care.slices_at_once)
        return Answer(probabilities, found - started, time.perf_counter() - found)
