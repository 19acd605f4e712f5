"""One square around the body for a whole series, and slices cut and resized to it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from src.ct.geometry import Plane
from src.ct.windows import AIR_HU

_BODY_HU = -300  # above lung, blankets and the foam of the table; below fat
_COARSE_MM = 3.0  # the body is looked for on a grid of about this step
_MIN_BODY_MM2 = 2000.0
RESIZED_TOGETHER = 4
"""Slices that `Crop.resize_all` takes: the channels that OpenCV resizes at once."""

_MARGIN_MM = 6.0  # the coarse grid and the opening may shave this off the skin


@dataclass(frozen=True)
class Crop:
    """A rectangle of source pixels, square in mm. It may reach outside the image, where there is air."""

    left: int
    top: int
    width: int
    height: int

    def resize(self, hu: np.ndarray, size: int) -> np.ndarray:
        """Cut (rows, cols) HU and resize to (size, size), same type.

        The HU are resized, not the grey levels: that is one channel instead of three, and averaging before a
        window clips is what a scanner with larger pixels would have measured.
        """
        return self._resized(self._cut(hu), size)

    def resize_all(self, slices: Sequence[np.ndarray], size: int) -> Sequence[np.ndarray]:
        """`resize` of up to four slices, to the same values.

        OpenCV averages areas of the four channels of one image in less time than those of four images. A
        whole number of pixels has a way that is faster still, and enlarging rounds differently.
        """
        whole_factor = self.width % size == 0 and self.height % size == 0
        alike = len({hu.dtype for hu in slices}) == 1
        if not self._shrinks(size) or whole_factor or not alike:
            return [self.resize(hu, size) for hu in slices]
        return cv2.split(self._resized(cv2.merge([self._cut(hu) for hu in slices]), size))

    def _shrinks(self, size: int) -> bool:
        return self.width >= size and self.height >= size

    def _resized(self, cut: np.ndarray, size: int) -> np.ndarray:
        how = cv2.INTER_AREA if self._shrinks(size) else cv2.INTER_LINEAR
        return cv2.resize(cut, (size, size), interpolation=how)

    def _cut(self, hu: np.ndarray) -> np.ndarray:
        rows, cols = hu.shape
        top, bottom = max(self.top, 0), min(self.top + self.height, rows)
        left, right = max(self.left, 0), min(self.left + self.width, cols)
        cut = hu[top:bottom, left:right]
        outside = (
            top - self.top,
            self.top + self.height - bottom,
            left - self.left,
            self.left + self.width - right,
        )
        if any(outside):
            cut = cv2.copyMakeBorder(cut, *outside, borderType=cv2.BORDER_CONSTANT, value=AIR_HU)
        return cut

    def plane(self, source: Plane, size: int) -> Plane:
        """Where the (size, size) image lies that `resize` makes of a slice at `source`."""
        row_scale, col_scale = self.height / size, self.width / size
        # Resizing maps pixel edges to pixel edges, so centre 0 moves by half of what a pixel grew.
        first_row, first_col = self.top + (row_scale - 1) / 2, self.left + (col_scale - 1) / 2
        origin = source.origin + first_row * source.row_step + first_col * source.col_step
        return Plane(origin, source.row_step * row_scale, source.col_step * col_scale)


def body_crop(
    slices: Iterable[np.ndarray],
    pixel_mm: tuple[float, float],
    shape: tuple[int, int],
    lowest_hu: float = AIR_HU,
) -> Crop:
    """The smallest square with a margin of 6 mm that holds the body in all of `slices` (rows, cols; HU).

    Args:
        pixel_mm: distance of rows and of columns.
        shape: of a slice, which is taken whole where none shows a body.
        lowest_hu: below which the slices tell nothing apart, as those made of a window.
    """
    threshold_hu = max(_BODY_HU, lowest_hu)
    boxes = [box for box in (_body_box(hu, pixel_mm, threshold_hu) for hu in slices) if box is not None]
    row_mm, col_mm = pixel_mm
    if boxes:
        left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
        right, bottom = max(box[2] for box in boxes), max(box[3] for box in boxes)
        margin_mm = _MARGIN_MM
    else:
        left, top, right, bottom, margin_mm = 0, 0, shape[1], shape[0], 0.0
    side_mm = max((right - left) * col_mm, (bottom - top) * row_mm) + 2 * margin_mm
    width, height = round(side_mm / col_mm), round(side_mm / row_mm)
    return Crop(
        left=(left + right - width) // 2, top=(top + bottom - height) // 2, width=width, height=height
    )


def _body_box(
    hu: np.ndarray, pixel_mm: tuple[float, float], threshold_hu: float
) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom (exclusive) of the largest connected part denser than lung, or None.

    The opening cuts the thin bridges between the patient and the table's shell.
    """
    row_step, col_step = (max(1, round(_COARSE_MM / mm)) for mm in pixel_mm)
    dense = (hu[::row_step, ::col_step] > threshold_hu).astype(np.uint8)
    opened = cv2.morphologyEx(dense, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    _, _, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    parts = stats[1:]  # the first is the background
    if len(parts) == 0:
        return None
    body = parts[np.argmax(parts[:, cv2.CC_STAT_AREA])]
    if body[cv2.CC_STAT_AREA] * row_step * col_step * pixel_mm[0] * pixel_mm[1] < _MIN_BODY_MM2:
        return None
    left, top, width, height = (int(value) for value in body[:4])
    right, bottom = (left + width) * col_step, (top + height) * row_step
    return left * col_step, top * row_step, min(right, hu.shape[1]), min(bottom, hu.shape[0])
