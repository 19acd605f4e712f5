"""Interface of a CT series in any storage format: its source, its slices and the reasons to reject it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from src.core.errors import UserError
from src.ct.geometry import Plane
from src.ct.storage import FileSet, StoredFile, UnreachableFile
from src.ct.windows import Window


class SeriesError(UserError):
    """A series that cannot be prepared. The message is a short reason."""


class UnreachableSeries(SeriesError):
    """A series that cannot be read now because of the disk or the machine; a retry may succeed."""


class SliceError(Exception):
    """A slice, or its file, that cannot be used. The message is a short reason."""


def unusable_series(reason: str, causes: Iterable[BaseException | None]) -> SeriesError:
    """Return the error to raise for a series without a usable file or slice.

    Args:
        causes: error of each of its files or slices, None for those without.
    """
    kind = UnreachableSeries if any(isinstance(cause, UnreachableFile) for cause in causes) else SeriesError
    return kind(reason)


@dataclass(frozen=True)
class OrganFiles:
    """A segmentation in one file per organ: 1 where the organ is, 0 elsewhere."""

    files: tuple[StoredFile, ...]
    labels: tuple[int, ...]
    """The kit's label of the organ of each file."""


@dataclass(frozen=True)
class SeriesSource:
    """A series before any file is read: its files, and its segmentation if there is one."""

    patient_id: str
    series_id: str
    files: FileSet
    """DICOM files, or one NIfTI volume."""
    segmentation: StoredFile | OrganFiles | None = None
    kind: Literal["dicom", "nifti"] = "dicom"


@dataclass(frozen=True)
class Rejected:
    """A file or slice that is not used, and the reason."""

    source: str
    reason: str


@dataclass(frozen=True)
class Remark:
    """Something about a series that its user must know, in a few words.

    The series is prepared all the same; one that can be no CT raises `SeriesError` instead.
    """

    text: str
    doubtful: bool = False
    """Whether the pixels may be wrong, so that nothing should be trained on them."""


@dataclass(frozen=True)
class ReadSettings:
    """How to read a series whose files have crashed a decoder."""

    pydicom_only: bool = False
    left_out: tuple[Rejected, ...] = ()
    """Files, or frames of files, to skip because they crash every decoder or make it hang."""


READ_ALL = ReadSettings()
"""Settings that read every file with every reader."""


class CtSeries(Protocol):
    """Slices of one grid, head to feet, each with the patient's left on its right and the front up.

    `DicomSeries` and `NiftiSeries` are the two kinds.
    """

    rejected: tuple[Rejected, ...]
    """Files and slices excluded before any pixel was decoded, sorted by source."""

    remarks: tuple[Remark, ...]
    """What was mended, chosen or could not be decided when the series was opened."""

    source_window: Window | None
    """Window that an 8-bit source was made with, which limits the known HU; None for other sources."""

    @property
    def z_mm(self) -> np.ndarray:
        """(slices,) position along the slice normal, positive towards the head, so decreasing."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a slice."""

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Spacing of rows and columns."""

    @property
    def orientation(self) -> str:
        """Patient directions of the stored columns and rows; "LP" needed no rotation."""

    def other_readings(self) -> Iterable[tuple[Remark, "CtSeries"]]:
        """Return the same files read in other ways, and what to say if only that way makes a CT of them."""

    def read(self, index: int) -> np.ndarray:
        """Decode a slice to HU (rows, cols): int16, or float32 with fractions. Raises `SliceError`."""

    def plane(self, index: int) -> Plane:
        """Return the plane of a slice in patient space."""

    def instance_number(self, index: int) -> int:
        """Return InstanceNumber (0020,0013), or the index of a slice in its file, from 1."""

    def source(self, index: int) -> str:
        """Return the name of the slice's file, with the frame if the file has several."""
