"""What preparation asks of a CT series, whatever it is stored as."""

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
    """The series is not to blame but the disk or the machine: another try may have it."""


class SliceError(Exception):
    """A slice, or a file of one, that cannot be used. The message says why, in a few words."""


def unusable_series(reason: str, causes: Iterable[BaseException | None]) -> SeriesError:
    """The error to raise for a series of which nothing can be used.

    Args:
        causes: why its files or slices could not be read, as far as that is known.
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


class CtSeries(Protocol):
    """Slices of one grid, head to feet, each with the patient's left on its right and the front up."""

    rejected: tuple[Rejected, ...]
    """What was left out before a pixel was decoded, sorted by source."""

    source_window: Window | None
    """The window that an 8-bit source was made with: no HU outside of it are known. None where all are."""

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
        """A slice in HU, (rows, cols), int16, or float32 where there are fractions. Raises `SliceError`."""

    def plane(self, index: int) -> Plane:
        """Where a slice lies."""

    def instance_number(self, index: int) -> int:
        """InstanceNumber (0020,0013), or the index of a slice in its file, from 1."""

    def source(self, index: int) -> str:
        """Name of the file that a slice comes from, with its frame where there are several."""
