"""Series as found, not read yet."""

from dataclasses import dataclass
from typing import Literal

from src.ct.storage import FileSet, StoredFile


@dataclass(frozen=True)
class SeriesSource:
    """A series to prepare: its files, and its segmentation where there is one."""

    patient_id: str
    series_id: str
    files: FileSet
    """DICOM files, or one NIfTI volume."""
    segmentation: StoredFile | None = None
    kind: Literal["dicom", "nifti"] = "dicom"


@dataclass(frozen=True)
class LeftOut:
    """A file that belongs to no series, and why."""

    source: str
    """Its path below the input."""
    reason: str
    patient_id: str = ""
    series_id: str = ""


@dataclass(frozen=True)
class FoundSources:
    """What there is to prepare."""

    name: str
    """What the series are, for people and for dataset.json: `rsna train`, `DICOM`, `NIfTI`."""
    series: list[SeriesSource]
    """Sorted by patient and series; no pair of ids occurs twice."""
    left_out: tuple[LeftOut, ...] = ()
    other_files: int = 0
    """Files that are no images: texts, pictures, DICOMDIR, labels."""
    unused_masks: int = 0
    """Files of `--masks` that belong to no series."""
