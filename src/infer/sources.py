"""Where a patient's series come from: raw DICOM folders, or a prepared data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from src.core.errors import UserError
from src.data.attempts import with_caution
from src.data.file_tree import open_tree
from src.data.grey_slices import load_stack
from src.data.rsna import find_root
from src.data.series_source import SeriesSource
from src.data.sources import find_sources
from src.data.stack import PreparedDataset, even_indices
from src.data.windows import get_windows
from src.infer.ensemble import StackKind


class StackSource(Protocol):
    """Finds the series of a patient and reads evenly spaced slices of one."""

    def series_of(self, patient_id: str) -> list[str]:
        """Series ids, sorted; empty when the patient has none."""

    def check(self, kind: StackKind) -> None:
        """Raises UserError where no series of the source can be read as models want it."""

    def read(self, patient_id: str, series_id: str, kind: StackKind) -> np.ndarray:
        """uint8 (T, size, size, C)."""


class RawSource:
    """Test images in the competition's layout, decoded slice by slice as needed; nothing is written."""

    def __init__(self, series: list[SeriesSource]):
        self._series = {(source.patient_id, source.series_id): source for source in series}

    def series_of(self, patient_id: str) -> list[str]:
        return sorted(series_id for patient, series_id in self._series if patient == patient_id)

    def check(self, kind: StackKind) -> None:
        get_windows(kind[0])

    def read(self, patient_id: str, series_id: str, kind: StackKind) -> np.ndarray:
        windows, size, slices = kind
        images, _ = with_caution(
            load_stack, self._series[patient_id, series_id], get_windows(windows), size, slices
        )
        return images


@dataclass(frozen=True)
class PreparedSource:
    """A data set that prepare_data.py wrote with the windows and the size of the models."""

    prepared: PreparedDataset

    def series_of(self, patient_id: str) -> list[str]:
        series = self.prepared.series
        return list(series.series_id[series.patient_id == patient_id])

    def check(self, kind: StackKind) -> None:
        windows, size, _ = kind
        if (windows, size) != (self.prepared.windows, self.prepared.size):
            raise UserError(
                f"{self.prepared.folder} has windows {' '.join(self.prepared.windows)} at "
                f"{self.prepared.size} px, the models want {' '.join(windows)} at {size} px"
            )

    def read(self, patient_id: str, series_id: str, kind: StackKind) -> np.ndarray:
        series = self.prepared.series
        row = series[(series.patient_id == patient_id) & (series.series_id == series_id)].iloc[0]
        return self.prepared.read_slices(patient_id, series_id, even_indices(int(row.slices), kind[2]))


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
