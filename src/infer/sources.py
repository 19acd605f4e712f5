"""Where a patient's series come from: raw DICOM folders, or a prepared data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from src.cls.dataset import StackBatch, as_sample
from src.cls.organs import OrganIndex
from src.cls.stacks import StackPlan, StackReader, as_predicted, check_view, cut_stack, plan_stack
from src.core.errors import UserError
from src.data.attempts import with_caution
from src.data.file_tree import open_tree
from src.data.grey_slices import load_stack
from src.data.rsna import find_root
from src.data.series_source import SeriesSource
from src.data.sources import find_sources
from src.data.stack import PreparedDataset
from src.data.windows import get_windows
from src.infer.ensemble import StackKind


class StackSource(Protocol):
    """Finds the series of a patient and cuts stacks out of one."""

    def series_of(self, patient_id: str) -> list[str]:
        """Series ids, sorted; empty when the patient has none."""

    def check(self, kind: StackKind) -> None:
        """Raises UserError where no series of the source can be read as models want it."""

    def read(self, patient_id: str, series_id: str, kind: StackKind) -> StackBatch:
        """One stack, without targets."""


class RawSource:
    """Test images in the competition's layout, decoded slice by slice as needed; nothing is written."""

    def __init__(self, series: list[SeriesSource]):
        self._series = {(source.patient_id, source.series_id): source for source in series}

    def series_of(self, patient_id: str) -> list[str]:
        return sorted(series_id for patient, series_id in self._series if patient == patient_id)

    def check(self, kind: StackKind) -> None:
        get_windows(kind.view.windows)
        if kind.view.needs_masks:
            raise UserError(
                "these models look at organs, and raw images have no masks: prepare the input with "
                "prepare_data.py, segment it with segment.py, and give the prepared folder"
            )

    def read(self, patient_id: str, series_id: str, kind: StackKind) -> StackBatch:
        view = kind.view
        images, _ = with_caution(
            load_stack,
            self._series[patient_id, series_id],
            get_windows(view.windows),
            view.size,
            _SlicesShown(kind),
        )
        shown = np.arange(view.slices * view.neighbours).clip(max=len(images) - 1)
        plan = StackPlan(shown[:: view.neighbours], len(images) // view.neighbours, shown, shown)
        return as_sample(as_predicted(cut_stack(plan, images, None, view, None), view), view)


@dataclass(frozen=True)
class _SlicesShown:
    """The slices of a stack with their neighbours, without padding, from the positions of a series."""

    kind: StackKind

    def __call__(self, z_mm: np.ndarray) -> np.ndarray:
        view = self.kind.view
        plan = plan_stack(z_mm, None, view, self.kind.offset)
        return plan.wanted[plan.places[: plan.filled * view.neighbours]]


class PreparedSource:
    """A data set that prepare_data.py wrote with the windows and the size of the models."""

    def __init__(self, prepared: PreparedDataset) -> None:
        self.prepared = prepared
        self._reader = StackReader(prepared, None)

    def series_of(self, patient_id: str) -> list[str]:
        series = self.prepared.series
        return list(series.series_id[series.patient_id == patient_id])

    def check(self, kind: StackKind) -> None:
        view = kind.view
        check_view(self.prepared, view)
        if view.needs_masks and self._reader.organs is None:
            organs = OrganIndex.find(self.prepared, view.masks_from)
            organs.warn_of_unknown(self.prepared.series, view)
            self._reader = StackReader(self.prepared, organs)

    def read(self, patient_id: str, series_id: str, kind: StackKind) -> StackBatch:
        stack = self._reader.read((patient_id, series_id), kind.view, kind.offset)
        return as_sample(as_predicted(stack, kind.view), kind.view)


def open_source(folder: Path) -> StackSource:
    """Recognise a prepared data set, or test images in the competition's layout, in a folder or a zip.

    Raises:
        UserError: neither.
    """
    if (folder / "dataset.json").exists():
        return PreparedSource(PreparedDataset.open(folder))
    if not folder.exists():
        raise UserError(
            f"no folder {folder}: --input takes raw data with test_images/, or a prepared data set"
        )
    tree = open_tree(folder, "--input")
    root = find_root(tree)
    if root is not None and "test_images" in tree.list_folder(root)[0]:
        return RawSource(find_sources(folder, "test").series)
    raise UserError(f"{folder} holds neither test_images/ nor a prepared data set (dataset.json)")
