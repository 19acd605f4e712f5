"""Test images in the competition's layout: decoded as needed, cut into stacks, nothing written."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from src.cls.dataset import StackBatch, as_sample
from src.cls.stacks import crop_centre, cut_stack
from src.cls.views import RequiredSlices, plan_stack
from src.core.errors import UserError
from src.ct.windows import WINDOWS, get_windows
from src.data.selection import ALL_SLICES, SliceSelection
from src.infer.sources import ReadSeries, StackKind, Volume
from src.prepare.grey_stack import GreyStack, load_stack
from src.prepare.retries import run_with_retries
from src.prepare.sources import FoundSources, find_competition, find_competition_series, open_tree
from src.seg.model import SegmenterSpec

SILENCE_LIMIT_S = 30.0
"""For a slice, before its decoder is given up: there are nine hours for all series."""


class RawSource:
    """Series that are decoded slice by slice; each slice that several stacks show is decoded once.

    Args:
        found: the series, and what belongs to none.
        kinds: stacks that are wanted of every series.
        segmenter: of the networks that find organs; None if there are none.

    Raises:
        UserError: see `require_segmenter`.
    """

    def __init__(
        self, found: FoundSources, kinds: Sequence[StackKind], segmenter: SegmenterSpec | None
    ) -> None:
        require_segmenter(kinds, segmenter)
        self._series = {(source.patient_id, source.series_id): source for source in found.series}
        self._left_out = found.left_out
        together: dict[tuple[int, SliceSelection], list[StackKind]] = {}
        for kind in kinds:
            together.setdefault((kind.view.size, kind.view.selection), []).append(kind)
        self._requests = [_Request.of(*key, own, segmenter) for key, own in together.items()]
        if sum(request.is_whole for request in self._requests) > 1:
            raise UserError("the models that look at organs come from data prepared in different ways")

    @classmethod
    def open(
        cls, path: Path, kinds: Sequence[StackKind], segmenter: SegmenterSpec | None = None
    ) -> "RawSource":
        """Find test_images/ in a folder or a zip.

        Raises:
            UserError: there is none.
        """
        if not path.exists():
            raise UserError(
                f"no folder {path}: --input takes raw data with test_images/, or a prepared data set"
            )
        tree = open_tree(path, "--input")
        root = find_competition(tree)
        if root is None or "test_images" not in tree.list_folder(root)[0]:
            raise UserError(f"{path} holds neither test_images/ nor a prepared data set (dataset.json)")
        series, left_out = find_competition_series(tree, root, "test")
        return cls(FoundSources("rsna test", series, tuple(left_out)), kinds, segmenter)

    def series_of(self, patient_id: str) -> list[str]:
        return sorted(series_id for patient, series_id in self._series if patient == patient_id)

    def why_none(self, patient_id: str) -> str:
        reasons = [item.reason for item in self._left_out if patient_id in item.source.split("/")]
        return "; ".join(dict.fromkeys(reasons))

    def decode(self, patient_id: str, series_id: str) -> Callable[[], ReadSeries]:
        started = time.perf_counter()
        decoded = [
            run_with_retries(
                load_stack,
                self._series[patient_id, series_id],
                get_windows(request.windows),
                request.size,
                request.choose,
                silence_limit_s=SILENCE_LIMIT_S,
            )
            for request in self._requests
        ]
        decode_s = time.perf_counter() - started
        return lambda: self._cut_all(ReadSeries(patient_id, series_id, decode_s=decode_s), decoded)

    def _cut_all(self, series: ReadSeries, decoded: Sequence[GreyStack]) -> ReadSeries:
        started = time.perf_counter()
        stacks: dict[StackKind, StackBatch] = {}
        volume = None
        for request, slices in zip(self._requests, decoded, strict=True):
            if request.is_whole:
                z_mm = slices.z_mm[slices.indices]
                volume = Volume(slices.images, request.windows, z_mm, slices.pixel_mm)
            stacks |= {
                kind: _cut(slices, request.windows, kind)
                for kind in request.kinds
                if not kind.view.needs_masks
            }
        return replace(series, stacks=stacks, volume=volume, transform_s=time.perf_counter() - started)


def require_segmenter(kinds: Sequence[StackKind], segmenter: SegmenterSpec | None) -> None:
    """Make sure that the organs of raw series can be found where stacks show them.

    Raises:
        UserError: nothing finds them, or it was trained on slices of another size.
    """
    for size in dict.fromkeys(kind.view.size for kind in kinds if kind.view.needs_masks):
        if segmenter is None:
            raise UserError(
                "these models look at organs, and raw images have no masks: give --segmenter, the run of "
                "train_seg.py whose masks they were trained with, or a folder that was prepared and segmented"
            )
        if segmenter.size != size:
            raise UserError(
                f"the segmenter was trained on slices of {segmenter.size} px, the models on {size} px: they "
                "must come from the same prepared data"
            )


@dataclass(frozen=True)
class _Request:
    """What is decoded of a series at one size, of one selection of its slices."""

    size: int
    selection: SliceSelection
    windows: tuple[str, ...]
    kinds: tuple[StackKind, ...]
    is_whole: bool
    """whether organs are to be found, in all slices"""

    @property
    def choose(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """For `load_stack`; it goes to a process that is to import no networks with the type of `kinds`."""
        if self.is_whole:
            return None if self.selection == ALL_SLICES else self.selection.choose
        return RequiredSlices(tuple((kind.view, kind.offset) for kind in self.kinds))

    @classmethod
    def of(
        cls,
        size: int,
        selection: SliceSelection,
        kinds: Sequence[StackKind],
        segmenter: SegmenterSpec | None,
    ) -> "_Request":
        shown = {name for kind in kinds for name in kind.view.windows}
        is_whole = any(kind.view.needs_masks for kind in kinds)
        if is_whole:
            shown |= set(segmenter.windows)
        windows = tuple(name for name in WINDOWS if name in shown)
        return cls(size, selection, windows, tuple(kinds), is_whole)


def _cut(decoded: GreyStack, windows: Sequence[str], kind: StackKind) -> StackBatch:
    view = kind.view
    selected = view.selection.choose(decoded.z_mm)
    plan = plan_stack(decoded.z_mm[selected], None, view, kind.offset)
    images = decoded.images[np.searchsorted(decoded.indices, selected[plan.wanted])]
    images = images[..., [windows.index(name) for name in view.windows]]
    return as_sample(crop_centre(cut_stack(plan, images, None, view, None), view), view)
