"""All networks of a run on one device: what turns a series as read into probabilities."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.cls.dataset import StackBatch
from src.core.errors import UserError
from src.core.log import warn
from src.infer.ensemble import Effort, Ensemble, Share
from src.infer.organ_finder import OrganFinder
from src.infer.placement import Placement
from src.infer.sources import ReadSeries, StackKind


@dataclass(frozen=True)
class Care:
    """What costs less memory, or keeps more of a number's range, for the same result."""

    slices_at_once: int | None = None
    """that pass a network together; None is all of a stack"""
    full_precision: bool = False


class Prediction(NamedTuple):
    """What the networks say of a series."""

    probabilities: np.ndarray
    """(runs, 13); NaN in the columns that a run does not tell"""
    organs_s: float
    """seconds that finding organs took"""
    runs_s: tuple[float, ...]
    """and the models of each run"""
    note: str = ""
    """what is to be told of it"""


class Networks:
    """An ensemble, and where it needs organs and the input has no masks, what finds them.

    Args:
        placement: where they run.
        runs, weights, flips: see `Ensemble`.
        segmenter: run folder of train_seg.py; not loaded where the runs that look at organs have no weight.

    Raises:
        UserError: a folder without a model, or a segmenter that nobody needs.
    """

    def __init__(
        self,
        placement: Placement,
        runs: Sequence[Path],
        weights: Sequence[float] | None = None,
        segmenter: Path | None = None,
        flips: tuple[str, ...] | None = None,
    ) -> None:
        self.placement = placement
        self.ensemble = Ensemble(runs, placement, weights or (1.0,) * len(runs), flips)
        self.finder = None
        if segmenter is None:
            return
        if self.ensemble.needs_organs(self.ensemble.all):
            self.finder = OrganFinder(segmenter, placement)
        elif not any(
            kind.view.needs_masks for member in self.ensemble.members for kind in member.kinds(True)
        ):
            raise UserError(f"none of these models looks at organs: leave --segmenter {segmenter} out")

    @property
    def most_slices(self) -> int:
        """The longest stack."""
        return max(kind.view.slices for kind in self.ensemble.stack_kinds())

    def warn_of_other_masks(self) -> None:
        """Say so where models were trained with true masks and are shown predicted ones."""
        kinds = self.ensemble.stack_kinds()
        if self.finder is not None and any(kind.view.masks_from == "true" for kind in kinds):
            warn("models trained with true masks are shown predicted ones")

    def predict(
        self, series: ReadSeries, share: Share, care: Care, check: Callable[[], None] = lambda: None
    ) -> Prediction:
        """Look at a series.

        Args:
            check: see `Effort`; what it raises ends the work.

        Raises:
            FloatingPointError: a network gives what is no number.
        """
        started = time.perf_counter()
        autocast = nullcontext if care.full_precision else self.placement.autocast
        effort = Effort(autocast, care.slices_at_once, check)
        stacks: dict[StackKind, StackBatch] = dict(series.stacks)
        note, organs_s = "", 0.0
        if series.volume is not None and self.ensemble.needs_organs(share):
            kinds = [kind for kind in self.ensemble.stack_kinds(share) if kind.view.needs_masks]
            found, note = self.finder.cut(series.volume, kinds, effort)
            stacks |= found
            organs_s = time.perf_counter() - started
        probabilities, runs_s = self.ensemble.predict(stacks, share, effort)
        return Prediction(probabilities, organs_s, runs_s, note)
