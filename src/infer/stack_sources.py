"""Sources of the stacks of a series: test images in their original form, or a prepared data set."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from src.cls.dataset import StackBatch, as_sample
from src.cls.organs import GROUP_OF_LABEL
from src.cls.stacks import Stack, StackReader, crop_centre, cut_stack, open_organs
from src.cls.views import Box, RequiredSlices, StackView, plan_stack
from src.core.errors import UserError
from src.core.log import warn
from src.ct.series import Remark, SeriesSource
from src.ct.storage import UnreachableTree
from src.ct.windows import WINDOWS, get_windows
from src.data.doubtful import is_doubtful
from src.data.prepared import PreparedDataset
from src.data.selection import ALL_SLICES
from src.prepare.grey_stack import GreyStack, load_stack
from src.prepare.retries import run_with_retries
from src.prepare.sources import find_competition, find_competition_series, open_tree
from src.seg.model import SegmenterSpec

SILENCE_LIMIT_S = 30.0
"""Seconds for one slice after which its decoder is killed: all series together have nine hours."""

PAUSES_S = (10.0, 30.0, 60.0)
"""Seconds to wait before each retry of an unavailable disk. Without its folders nothing can be predicted."""


class StackKind(NamedTuple):
    """Kind of a stack to extract from a series: view and offset."""

    view: StackView
    offset: float
    """offset of its slices, 0..1"""


Stacks = Mapping[StackKind, StackBatch]


@dataclass(frozen=True)
class DecodedSlices:
    """Decoded slices of a series in memory."""

    stack: GreyStack
    windows: tuple[str, ...]
    """window of each channel of `stack.images`"""

    @property
    def z_mm(self) -> np.ndarray:
        """(U,) positions of the images, decreasing."""
        return self.stack.z_mm[self.stack.indices]

    def channels(self, windows: Sequence[str]) -> np.ndarray:
        """Return uint8 (U, size, size, these windows), a view if they are all windows."""
        places = [self.windows.index(name) for name in windows]
        images = self.stack.images
        return images if places == list(range(len(self.windows))) else images[..., places]

    def make_stack(
        self,
        kind: StackKind,
        masks: np.ndarray | None = None,
        boxes: Mapping[str, tuple[Box, ...]] = MappingProxyType({}),
    ) -> StackBatch:
        """Make a stack without targets.

        Args:
            masks: labels (U, size, size) for views with mask channels; None for no organs.
            boxes: boxes of the regions; a missing region is the whole series.
        """
        view, decoded = kind.view, self.stack
        selected = view.selection.choose(decoded.z_mm)
        plan = plan_stack(decoded.z_mm[selected], boxes.get(view.z_range, ()), view, kind.offset)
        images = decoded.images[np.searchsorted(decoded.indices, selected[plan.wanted])]
        images = images[..., [self.windows.index(name) for name in view.windows]]
        maps = None
        if view.mask_channels:
            maps = np.zeros((view.slices, view.size, view.size), dtype=np.uint8)
            if masks is not None:
                maps = GROUP_OF_LABEL[masks[plan.indices]]
        return as_sample(
            crop_centre(cut_stack(plan, images, maps, view, boxes.get(view.in_plane, ())), view), view
        )


@dataclass(frozen=True)
class LoadedSeries:
    """A series as far as it can be read without networks, or the reason why it cannot be read."""

    key: tuple[str, str]
    """patient and series id"""
    stacks: Stacks = field(default_factory=dict)
    volume: DecodedSlices | None = None
    """whole series, if stacks with organ masks are requested and organs have yet to be found"""
    remarks: tuple[Remark, ...] = ()
    """remarks of the series; the reason of series.csv if it was prepared"""
    reason: str = ""
    """reason why it cannot be read; empty if it was read"""
    is_temporary: bool = False
    """whether the machine rather than the files is the cause, so that a retry may help"""
    read_s: float = 0.0


ReadContent = tuple[Stacks, DecodedSlices | None, tuple[Remark, ...]]
"""`stacks`, `volume` and `remarks` of `LoadedSeries`."""


class StackSource(Protocol):
    """Finds the series of a patient and reads them."""

    def series_of(self, patient_id: str) -> list[str]:
        """Return sorted series ids; empty if the patient has none."""

    def why_none(self, patient_id: str) -> str:
        """Return the reason why a patient has no series; empty if unknown."""

    def decode(self, patient_id: str, series_id: str) -> Any:
        """Read the files of a series as input for `make_stacks`. Raises if they cannot be read."""

    def make_stacks(self, decoded: Any) -> ReadContent:
        """Make stacks without targets, and the volume if organs have yet to be found; reads no file."""


def open_source(
    path: Path, kinds: Sequence[StackKind], segmenter: SegmenterSpec | None = None
) -> StackSource:
    """Open a prepared data set, or test images in the competition's layout, in a folder or a zip.

    Args:
        kinds: stacks requested of every series.
        segmenter: spec of the networks that find organs; None if there are none.

    Raises:
        UserError: the path is neither, or the stacks cannot be extracted from it.
    """
    for pause_s in (*PAUSES_S, None):
        try:
            if not (path / "dataset.json").exists():
                return RawSource(path, kinds, segmenter)
            if segmenter is not None:
                raise UserError(
                    f"{path} is a prepared data set: segment.py writes its masks, leave --segmenter out"
                )
            return PreparedSource(PreparedDataset.open(path), kinds)
        except UnreachableTree as error:
            if pause_s is None:
                raise
            warn(f"{error}; trying again in {pause_s:.0f} s")
            time.sleep(pause_s)


class PreparedSource:
    """A data set that prepare_data.py wrote with the windows and the size of the models.

    Raises:
        UserError: one of the stacks cannot be extracted from the data set.
    """

    def __init__(self, prepared: PreparedDataset, kinds: Sequence[StackKind]) -> None:
        self.prepared, self.kinds = prepared, tuple(kinds)
        organs = open_organs(prepared, [kind.view for kind in self.kinds], prepared.series)
        self._reader = StackReader(prepared, organs)
        remarks = map(Remark, prepared.series["reason"].fillna(""), is_doubtful(prepared.series))
        self._remarks = dict(zip(prepared.slice_counts, remarks, strict=True))

    def series_of(self, patient_id: str) -> list[str]:
        series = self.prepared.series
        return list(series.series_id[series.patient_id == patient_id])

    def why_none(self, patient_id: str) -> str:
        found = self.prepared.all_series
        return "; ".join(found.reason[found.patient_id == patient_id].dropna())

    def decode(self, patient_id: str, series_id: str) -> tuple[dict[StackKind, Stack], Remark]:
        key = (patient_id, series_id)
        stacks = {kind: self._reader.read(key, kind.view, kind.offset) for kind in self.kinds}
        return stacks, self._remarks[key]

    def make_stacks(self, decoded: tuple[dict[StackKind, Stack], Remark]) -> ReadContent:
        read, remark = decoded
        stacks = {kind: as_sample(crop_centre(stack, kind.view), kind.view) for kind, stack in read.items()}
        return stacks, None, (remark,)


class RawSource:
    """Test images that are decoded on demand; a slice that several stacks use is decoded once.

    Args:
        path: folder or zip with test_images/, possibly inside another folder.
        kinds: stacks requested of every series.
        segmenter: spec of the networks that find organs; None if there are none.

    Raises:
        UserError: no test_images/, see `require_segmenter`, or organs would have to be found in several
            versions of a series.
    """

    def __init__(
        self, path: Path, kinds: Sequence[StackKind], segmenter: SegmenterSpec | None = None
    ) -> None:
        tree = open_tree(path, "--input")
        root = find_competition(tree)
        if root is None or "test_images" not in tree.list_folder(root)[0]:
            raise UserError(f"{path} holds neither test_images/ nor a prepared data set (dataset.json)")
        series, self._left_out = find_competition_series(tree, root, "test")
        self._series = {(source.patient_id, source.series_id): source for source in series}
        require_segmenter(kinds, segmenter)
        together: dict[tuple, list[StackKind]] = {}
        for kind in kinds:
            together.setdefault((kind.view.size, kind.view.selection), []).append(kind)
        self._requests = [_Request.of(alike, segmenter) for alike in together.values()]
        if sum(request.is_whole for request in self._requests) > 1:
            raise UserError("the models that use organ masks come from data prepared in different ways")

    def series_of(self, patient_id: str) -> list[str]:
        return sorted(series_id for patient, series_id in self._series if patient == patient_id)

    def why_none(self, patient_id: str) -> str:
        reasons = [item.reason for item in self._left_out if patient_id in item.source.split("/")]
        return "; ".join(dict.fromkeys(reasons))

    def decode(self, patient_id: str, series_id: str) -> list[DecodedSlices]:
        return [request.decode(self._series[patient_id, series_id]) for request in self._requests]

    def make_stacks(self, decoded: list[DecodedSlices]) -> ReadContent:
        stacks, volume = {}, None
        for request, slices in zip(self._requests, decoded, strict=True):
            if request.is_whole:
                volume = slices
            stacks |= {kind: slices.make_stack(kind) for kind in request.kinds if not kind.view.needs_masks}
        remarks = dict.fromkeys(remark for slices in decoded for remark in slices.stack.remarks)
        return stacks, volume, tuple(remarks)


def require_segmenter(kinds: Sequence[StackKind], segmenter: SegmenterSpec | None) -> None:
    """Check that the organs of raw series can be found if stacks use them.

    Raises:
        UserError: no segmenter, or it was trained on larger slices.
    """
    views = [kind.view for kind in kinds if kind.view.needs_masks]
    for size in dict.fromkeys(view.size for view in views):
        if segmenter is None:
            raise UserError(
                "these models use organ masks, and raw images have no masks: give --segmenter, the run of "
                "train_seg.py whose masks they were trained with, or a folder that was prepared and segmented"
            )
        if segmenter.size > size:
            raise UserError(
                f"the segmenter was trained on slices of {segmenter.size} px, the models on {size} px: they "
                "must come from the same prepared data"
            )
    if any(view.masks_from == "true" for view in views):
        warn("models trained with true masks get predicted ones")


@dataclass(frozen=True)
class _Request:
    """Slices to decode of a series, for stacks of one size and one selection of slices."""

    kinds: tuple[StackKind, ...]
    windows: tuple[str, ...]
    is_whole: bool
    """whether all slices are needed to find organs"""

    @classmethod
    def of(cls, kinds: Sequence[StackKind], segmenter: SegmenterSpec | None) -> "_Request":
        shown = {name for kind in kinds for name in kind.view.windows}
        is_whole = any(kind.view.needs_masks for kind in kinds)
        if is_whole:
            shown |= set(segmenter.windows)
        return cls(tuple(kinds), tuple(name for name in WINDOWS if name in shown), is_whole)

    def decode(self, source: SeriesSource) -> DecodedSlices:
        """Decode in a child process, which imports no networks: `choose` contains views and offsets only."""
        view = self.kinds[0].view
        choose: Callable[[np.ndarray], np.ndarray] | None
        if not self.is_whole:
            choose = RequiredSlices(tuple((kind.view, kind.offset) for kind in self.kinds))
        else:
            choose = None if view.selection == ALL_SLICES else view.selection.choose
        stack = run_with_retries(
            load_stack,
            source,
            get_windows(self.windows),
            view.size,
            choose,
            silence_limit_s=SILENCE_LIMIT_S,
        )
        return DecodedSlices(stack, self.windows)
