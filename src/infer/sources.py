"""Where a patient's series come from: test images as they are, or a prepared data set."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from src.cls.dataset import StackBatch, as_sample
from src.cls.organs import OrganIndex
from src.cls.stacks import StackReader, check_view, crop_centre
from src.cls.views import StackView
from src.core.errors import UserError
from src.core.isolation import ChildNotStarted
from src.core.log import warn
from src.ct.series import UnreachableSeries
from src.data.prepared import PreparedDataset


class StackKind(NamedTuple):
    """A stack that has to be cut out of a series."""

    view: StackView
    offset: float
    """of its slices, 0..1"""


Stacks = Mapping[StackKind, StackBatch]


@dataclass(frozen=True)
class Volume:
    """A whole series in memory, whose organs are still to be found."""

    images: np.ndarray
    """uint8 (Z, size, size, windows), head to feet"""
    windows: tuple[str, ...]
    z_mm: np.ndarray
    """(Z,), falling"""
    pixel_mm: float

    def show(self, windows: Sequence[str]) -> np.ndarray:
        """uint8 (Z, size, size, these windows), a view where they are all."""
        places = [self.windows.index(name) for name in windows]
        return self.images if places == list(range(len(self.windows))) else self.images[..., places]


@dataclass(frozen=True)
class ReadSeries:
    """A series as far as it can be read without networks, or the reason why it cannot."""

    patient_id: str
    series_id: str
    stacks: dict[StackKind, StackBatch] = field(default_factory=dict)
    volume: Volume | None = None
    """where stacks are wanted that show organs"""
    reason: str = ""
    """why it cannot be read; empty if it was"""
    is_passing: bool = False
    """whether the machine is to blame rather than the files, so that another try may help"""
    decode_s: float = 0.0
    transform_s: float = 0.0


class StackSource(Protocol):
    """Finds the series of a patient and reads one."""

    def series_of(self, patient_id: str) -> list[str]:
        """Series ids, sorted; empty when the patient has none."""

    def why_none(self, patient_id: str) -> str:
        """What is known of a patient without series; empty if nothing is."""

    def decode(self, patient_id: str, series_id: str) -> Callable[[], ReadSeries]:
        """Read a series' files; raises where they cannot be read.

        Returns:
            What cuts all stacks out of them, without targets: work that needs no file.
        """


class PreparedSource:
    """A data set that prepare_data.py wrote with the windows and the size of the models.

    Args:
        kinds: stacks that are wanted of every series.

    Raises:
        UserError: the data set cannot give one.
    """

    def __init__(self, prepared: PreparedDataset, kinds: Sequence[StackKind]) -> None:
        self.prepared, self.kinds = prepared, tuple(kinds)
        organs = None
        for kind in self.kinds:
            check_view(prepared, kind.view)
            if not kind.view.needs_masks:
                continue
            if organs is None:
                organs = OrganIndex.find(prepared, kind.view.masks_from)
                organs.warn_of_unknown(prepared.series, kind.view)
            elif kind.view.masks_from not in (organs.source, self.kinds[0].view.masks_from):
                warn(f"models trained with {kind.view.masks_from} masks are shown the {organs.source} ones")
        self._reader = StackReader(prepared, organs)

    def series_of(self, patient_id: str) -> list[str]:
        series = self.prepared.series
        return list(series.series_id[series.patient_id == patient_id])

    def why_none(self, patient_id: str) -> str:
        found = self.prepared.all_series
        return "; ".join(found.reason[found.patient_id == patient_id].dropna())

    def decode(self, patient_id: str, series_id: str) -> Callable[[], ReadSeries]:
        started = time.perf_counter()
        stacks = {}
        for kind in self.kinds:
            stack = self._reader.read((patient_id, series_id), kind.view, kind.offset)
            stacks[kind] = as_sample(crop_centre(stack, kind.view), kind.view)
        found = ReadSeries(patient_id, series_id, stacks, decode_s=time.perf_counter() - started)
        return lambda: found


def unread_series(patient_id: str, series_id: str, error: Exception) -> ReadSeries:
    """What stands for a series that cannot be read."""
    return ReadSeries(
        patient_id,
        series_id,
        reason=describe_error(error),
        is_passing=isinstance(error, UnreachableSeries | ChildNotStarted | MemoryError | OSError),
    )


def describe_error(error: BaseException) -> str:
    """An error in one line of a report."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return (kind + " ".join(str(error).split()))[:300]
