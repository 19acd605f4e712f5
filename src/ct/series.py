"""A CT series: where it is found, what it offers in any storage format, and why one cannot be used."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from src.core.errors import UserError
from src.ct.geometry import Plane
from src.ct.storage import FileSet, StoredFile, UnreachableFile
from src.ct.windows import Window


class SeriesError(UserError):
    """A series that cannot be prepared. The message is the reason, in a few words."""


class UnreachableSeries(SeriesError):
    """A series that cannot be read now, because of the disk or the machine: another try may succeed."""


class SliceError(Exception):
    """A slice, or a file of one, that cannot be used. The message is the reason, in a few words."""


def unusable_series(reason: str, causes: Iterable[BaseException | None]) -> SeriesError:
    """The error to raise for a series of which nothing can be used.

    Args:
        causes: the errors of its files or slices, None where there was none.
    """
    kind = UnreachableSeries if any(isinstance(cause, UnreachableFile) for cause in causes) else SeriesError
    return kind(reason)


@dataclass(frozen=True)
class SeriesSource:
    """A series as found, before a file is read: its files, and its segmentation where there is one."""

    patient_id: str
    series_id: str
    files: FileSet
    """DICOM files, or one NIfTI volume."""
    segmentation: StoredFile | None = None
    kind: Literal["dicom", "nifti"] = "dicom"


@dataclass(frozen=True)
class Rejected:
    """A file or slice that is not used, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class ReadSettings:
    """How to read a series whose files have crashed a decoder."""

    pydicom_only: bool = False
    left_out: tuple[Rejected, ...] = ()
    """Files, or frames of files, that crash every decoder or keep it busy without end."""


READ_ALL = ReadSettings()
"""Every file, with every reader."""


class CtSeries(Protocol):
    """Slices of one grid, head to feet, each with the patient's left on its right and the front up.

    `DicomSeries` and `NiftiSeries` are the two kinds.
    """

    rejected: tuple[Rejected, ...]
    """Files and slices left out before a pixel was decoded, sorted by source."""

    source_window: Window | None
    """The window that an 8-bit source was made with, outside of which no HU are known; None for others."""

    @property
    def z_mm(self) -> np.ndarray:
        """(slices,) position along the slice normal, head positive, so falling."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a slice."""

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Distance of the rows, and of the columns."""

    @property
    def orientation(self) -> str:
        """Where the stored columns and rows run, as two patient directions; "LP" needed no turning."""

    def read(self, index: int) -> np.ndarray:
        """Decode a slice: HU (rows, cols), int16, or float32 with fractions. Raises `SliceError`."""

    def plane(self, index: int) -> Plane:
        """Where a slice lies."""

    def instance_number(self, index: int) -> int:
        """InstanceNumber (0020,0013), or the index of a slice in its file, from 1."""

    def source(self, index: int) -> str:
        """Name of the file that a slice comes from, with its frame where there are several."""
