"""Geometry of slices in the patient, and their rotation to the radiologist's view.

Vectors are (x, y, z) in mm of the DICOM patient space: x to the left, y to the back, z to the head.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_AXIAL_COSINE = 0.8  # gantries tilt up to 30 degrees (0.87); coronal and sagittal reformats are near 0

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Plane:
    """A slice in patient space; pixel (row, col) is centred at `origin + row * row_step + col * col_step`."""

    origin: np.ndarray
    row_step: np.ndarray
    col_step: np.ndarray


@dataclass(frozen=True)
class SliceGrid:
    """Pixel grid shared by the slices of a series, as stored, with its rotation to the anatomical one.

    In an oriented image the patient's left is on the right and the front is up.
    """

    rows: int
    cols: int
    row_mm: float
    col_mm: float
    along_rows: Vector
    """Unit vector of increasing row index."""
    along_cols: Vector
    """Unit vector of increasing column index."""

    @cached_property
    def transposed(self) -> bool:
        """Whether the stored column index runs along the front-back axis rather than right-left."""
        x, y, _ = self.along_cols
        return abs(x) < abs(y)

    @cached_property
    def _axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors of increasing row and column index after the transposition, before the flips."""
        along_rows, along_cols = np.array(self.along_rows), np.array(self.along_cols)
        return (along_cols, along_rows) if self.transposed else (along_rows, along_cols)

    @cached_property
    def _flips(self) -> tuple[bool, bool]:
        along_rows, along_cols = self._axes
        return bool(along_rows[1] < 0), bool(along_cols[0] < 0)

    @property
    def orientation(self) -> str:
        """Patient directions of the stored columns and rows; "LP" needs no rotation."""
        letters = ("L" if not self._flips[1] else "R", "P" if not self._flips[0] else "A")
        return letters[1] + letters[0] if self.transposed else letters[0] + letters[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the oriented image."""
        return (self.cols, self.rows) if self.transposed else (self.rows, self.cols)

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Spacing of the oriented image's rows and columns."""
        return (self.col_mm, self.row_mm) if self.transposed else (self.row_mm, self.col_mm)

    @cached_property
    def normal(self) -> np.ndarray:
        """Unit normal of the slices, pointing to the head."""
        (ax, ay, az), (bx, by, bz) = self.along_cols, self.along_rows
        normal = np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])
        return normal if normal[2] >= 0 else -normal

    @property
    def is_axial(self) -> bool:
        """Whether the slices are axial, possibly tilted, rather than coronal or sagittal."""
        return bool(self.normal[2] >= _AXIAL_COSINE)

    def orient(self, image: np.ndarray) -> np.ndarray:
        """Orient a stored image (returns a view)."""
        image = image.T if self.transposed else image
        flip_rows, flip_cols = self._flips
        return image[:: -1 if flip_rows else 1, :: -1 if flip_cols else 1]

    def plane(self, position_mm: Vector) -> Plane:
        """Return the plane of the oriented slice whose first stored pixel is centred at `position_mm`."""
        origin = np.array(position_mm)
        steps = [axis * mm for axis, mm in zip(self._axes, self.pixel_mm, strict=True)]
        for axis, flipped in enumerate(self._flips):
            if flipped:
                origin = origin + (self.shape[axis] - 1) * steps[axis]
                steps[axis] = -steps[axis]
        return Plane(origin, row_step=steps[0], col_step=steps[1])
