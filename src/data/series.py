"""A CT series: which files belong to it, in which order, and how they lie in the patient.

Everything follows from ImagePositionPatient and ImageOrientationPatient. File names, InstanceNumber and
PatientPosition say nothing reliable about geometry.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from src.core.errors import UserError
from src.data.dicom import FAST_READERS, DicomError, Header, Reader, read_header

_AXIAL_COSINE = 0.8  # gantries tilt up to 30 degrees (0.87); coronal and sagittal reformats are near 0
_SAME_POSITION_DECIMALS = 2  # positions closer than 0.01 mm are one


class SeriesError(UserError):
    """A series that cannot be prepared. The message is the reason, in a few words."""


@dataclass(frozen=True)
class Rejected:
    """A file left out of its series, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Plane:
    """A slice in patient space (mm; x to the left, y to the back, z to the head).

    Pixel (row, col) has its centre at `origin + row * row_step + col * col_step`.
    """

    origin: np.ndarray
    row_step: np.ndarray
    col_step: np.ndarray


@dataclass(frozen=True)
class Series:
    """Slices of one grid, head to feet. Rows and columns are those of the oriented image, see `orient`."""

    headers: tuple[Header, ...]
    rejected: tuple[Rejected, ...] = ()

    def __len__(self) -> int:
        return len(self.headers)

    @cached_property
    def _transposed(self) -> bool:
        """Whether the file's column index runs along the front-back axis rather than right-left."""
        x, y, _ = self.headers[0].along_cols
        return abs(x) < abs(y)

    @cached_property
    def _axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors of growing row and column index after the transposition, before the flips."""
        along_rows, along_cols = np.array(self.headers[0].along_rows), np.array(self.headers[0].along_cols)
        return (along_cols, along_rows) if self._transposed else (along_rows, along_cols)

    @cached_property
    def _flips(self) -> tuple[bool, bool]:
        along_rows, along_cols = self._axes
        return bool(along_rows[1] < 0), bool(along_cols[0] < 0)

    @property
    def orientation(self) -> str:
        """Where the file's columns and rows run, as two patient directions; "LP" needs no turning."""
        letters = ("L" if not self._flips[1] else "R", "P" if not self._flips[0] else "A")
        return letters[1] + letters[0] if self._transposed else letters[0] + letters[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the oriented image."""
        header = self.headers[0]
        return (header.cols, header.rows) if self._transposed else (header.rows, header.cols)

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Distance of the oriented image's rows, and of its columns."""
        header = self.headers[0]
        return (header.col_mm, header.row_mm) if self._transposed else (header.row_mm, header.col_mm)

    @cached_property
    def z_mm(self) -> np.ndarray:
        """(slices,) position along the slice normal, head positive, so falling."""
        return _positions_along_normal(self.headers)

    @property
    def spacing_z_mm(self) -> float:
        """Median distance of neighbouring slices; nan for a single slice."""
        return float(np.median(-np.diff(self.z_mm))) if len(self) > 1 else float("nan")

    def orient(self, image: np.ndarray) -> np.ndarray:
        """A file's image turned so that the patient's left is on the right and the front is up (a view)."""
        image = image.T if self._transposed else image
        flip_rows, flip_cols = self._flips
        return image[:: -1 if flip_rows else 1, :: -1 if flip_cols else 1]

    def plane(self, index: int) -> Plane:
        """Where the oriented image of slice `index` lies."""
        origin = np.array(self.headers[index].position_mm)
        steps = [axis * mm for axis, mm in zip(self._axes, self.pixel_mm, strict=True)]
        for axis, flipped in enumerate(self._flips):
            if flipped:
                origin = origin + (self.shape[axis] - 1) * steps[axis]
                steps[axis] = -steps[axis]
        return Plane(origin, row_step=steps[0], col_step=steps[1])


def scan_series(folder: Path, readers: tuple[Reader, ...] = FAST_READERS) -> Series:
    """Read the headers of a folder's `*.dcm` files and put its slices in order, without decoding a pixel.

    Files that are unreadable, of another grid than most, or at a position that another file has already (the
    lowest InstanceNumber stays) are rejected, and the series goes on without them.

    Raises:
        SeriesError: no usable file, or slices that are not axial.
    """
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() == ".dcm")
    if not paths:
        raise SeriesError("no .dcm file")
    headers: list[Header] = []
    rejected: list[Rejected] = []
    for path in paths:
        try:
            headers.append(read_header(path, readers))
        except DicomError as error:
            rejected.append(Rejected(path.name, str(error)))
    if not headers:
        raise SeriesError(f"no usable file: {rejected[0].reason}")
    headers = _keep_main_grid(headers, rejected)
    normal_z = _normal(headers[0])[2]
    if normal_z < _AXIAL_COSINE:
        raise SeriesError("not axial")
    headers = _order_head_to_feet(headers, rejected)
    return Series(tuple(headers), tuple(sorted(rejected, key=lambda item: item.source)))


def _keep_main_grid(headers: list[Header], rejected: list[Rejected]) -> list[Header]:
    """The commonest size, spacing and orientation; a tie goes to the larger key, whatever the order."""

    def grid(header: Header) -> tuple:
        axes = (*header.along_cols, *header.along_rows)
        spacing = (round(header.row_mm, 4), round(header.col_mm, 4))
        return (header.rows, header.cols, *spacing, *(round(value, 2) + 0.0 for value in axes))

    counts = Counter(map(grid, headers))
    main = max(counts, key=lambda key: (counts[key], key))
    for header in headers:
        if grid(header) != main:
            rejected.append(
                Rejected(header.path.name, "another size, spacing or orientation than the series")
            )
    return [header for header in headers if grid(header) == main]


def _order_head_to_feet(headers: list[Header], rejected: list[Rejected]) -> list[Header]:
    positions = np.round(_positions_along_normal(headers), _SAME_POSITION_DECIMALS)
    order = sorted(
        zip(positions, headers, strict=True),
        key=lambda item: (-item[0], item[1].instance_number, item[1].path.name),
    )
    kept: list[Header] = []
    last = None
    for position, header in order:
        if position == last:
            rejected.append(Rejected(header.path.name, "same position as another slice"))
        else:
            kept.append(header)
        last = position
    return kept


def _normal(header: Header) -> np.ndarray:
    """Unit normal of the slice, pointing to the head."""
    normal = np.cross(header.along_cols, header.along_rows)
    return normal if normal[2] >= 0 else -normal


def _positions_along_normal(headers: list[Header] | tuple[Header, ...]) -> np.ndarray:
    return np.array([header.position_mm for header in headers]) @ _normal(headers[0])
