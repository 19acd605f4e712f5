"""A CT series as grey slices: cropped to one square around the trunk, resized, windowed.

Preparation and inference share this code, so a model's input at inference equals its input in training.
Slices stream: four of them are in memory at a time, for a series of any length.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from src.core.isolation import Report, no_report
from src.ct.dicom_series import scan_series
from src.ct.geometry import Plane
from src.ct.nifti import open_nifti
from src.ct.plausibility import NEIGHBOURS, check_series
from src.ct.sampled_slices import shows_body
from src.ct.series import (
    READ_ALL,
    CtSeries,
    ReadSettings,
    Remark,
    SeriesError,
    SeriesSource,
    SliceError,
    unusable_series,
)
from src.ct.storage import UnreadableFile
from src.ct.trunk import Box, find_trunk
from src.ct.windows import AIR_HU, Window, apply_windows
from src.data.selection import even_indices

RESIZED_TOGETHER = 4
"""Number of slices that `Crop.resize_all` takes: the channels that OpenCV resizes at once."""

POSITION_DIGITS = 4
"""Decimals of mm in every table of positions."""

_BODY_SLICES = 64  # enough to find the body
_MAX_LOST = 0.1  # share of slices; without more of them it is another scan
_MARGIN_MM = 6.0  # the coarse grid and the opening may remove this much of the skin
_WORTH_MM = 15.0  # a square that would be smaller by less stays around the whole body


@contextmanager
def open_series(
    source: SeriesSource,
    source_window: Window | None = None,
    settings: ReadSettings = READ_ALL,
    report: Report = no_report,
) -> Iterator[CtSeries]:
    """Open the series of a source: read its DICOM headers, or map its NIfTI volume.

    Args:
        source_window: window that 8-bit images were made with.
        settings: readers to use and files to skip.
        report: called with the name of each file and slice before it is read.

    Raises:
        SeriesError: no usable file, or not axial.
    """
    try:
        files = source.files.list()
    except UnreadableFile as error:
        raise unusable_series(str(error), [error]) from error
    if source.kind == "nifti":
        with open_nifti(files[0], source_window, report) as series:
            yield series
    else:
        yield scan_series(files, source_window, settings, report)


@dataclass(frozen=True)
class ExaminedSeries:
    """A series that may be prepared; see `examine`."""

    series: CtSeries
    """The series, or another reading of its files that makes a CT of them."""
    crop: "Crop"
    """Square around the trunk, for all slices."""
    body_range: tuple[int, int]
    """Indices of the first and last examined slice that show a body."""
    remarks: tuple[Remark, ...]
    decoded: dict[int, np.ndarray]
    """Slices in HU by index, 64 MB at most; each is removed once it is used."""


def examine(series: CtSeries) -> ExaminedSeries:
    """Decode up to 64 evenly spaced slices and find the square around the trunk; check that it is a CT.

    Raises:
        SeriesError: no CT, or no slice can be decoded.
    """
    n_slices = len(series.z_mm)
    even = even_indices(n_slices, min(n_slices, _BODY_SLICES)).tolist()
    followed = even_indices(n_slices, NEIGHBOURS).tolist() if n_slices > _BODY_SLICES else []
    wanted = sorted({*even, *followed, *(min(index + 1, n_slices - 1) for index in followed)})
    errors: list[SliceError] = []

    def decode(series: CtSeries) -> Iterator[tuple[int, np.ndarray]]:
        is_empty = True
        for index in wanted:
            try:
                yield index, series.read(index)
                is_empty = False
            except SliceError as error:
                errors.append(error)
        if is_empty:
            causes = [error.__cause__ for error in errors]
            raise unusable_series(f"no slice can be decoded: {errors[0]}", causes)

    series, samples, remarks = check_series(series, decode)
    n_lost = len(wanted) - len(samples.indices)
    if n_lost > max(1, _MAX_LOST * len(wanted)):
        text = f"{100 * n_lost / len(wanted):.0f} % of the slices cannot be decoded: {errors[0]}"
        remarks = (*remarks, Remark(text, doubtful=True))
    decoded = samples.decoded
    around = (
        decoded[index] if index in decoded else series.read(index)
        for index in np.intersect1d(even, samples.indices).tolist()
    )
    lowest_hu = series.source_window.lowest_hu if series.source_window else AIR_HU
    crop = body_crop(around, series.pixel_mm, series.shape, lowest_hu)
    return ExaminedSeries(series, crop, samples.body_range, remarks, decoded)


def read_grey_slices(
    examined: ExaminedSeries, indices: Sequence[int], windows: tuple[Window, ...], size: int
) -> Iterator[tuple[int, np.ndarray | SliceError]]:
    """Decode, crop, resize and window slices.

    Yields:
        Each index with its image, uint8 (size, size, windows), or with the error if it cannot be decoded, or
        is blank although slices above and below it are not.
    """
    for start in range(0, len(indices), RESIZED_TOGETHER):
        together = indices[start : start + RESIZED_TOGETHER]
        hu: dict[int, np.ndarray] = {}
        failed: dict[int, SliceError] = {}
        for index in together:
            try:
                hu[index] = _read_slice(examined, index)
            except SliceError as error:
                failed[index] = error
        resized = dict(zip(hu, examined.crop.resize_all(list(hu.values()), size), strict=True))
        for index in together:
            yield index, failed.get(index) or apply_windows(resized[index], windows)


def _read_slice(examined: ExaminedSeries, index: int) -> np.ndarray:
    series = examined.series
    hu = examined.decoded.pop(index) if index in examined.decoded else series.read(index)
    first, last = examined.body_range
    lowest_hu = series.source_window.lowest_hu if series.source_window else AIR_HU
    if first < index < last and not shows_body(hu, series.pixel_mm, lowest_hu):
        raise SliceError("blank, amid slices that show a body")
    return hu


def check_windows(series: CtSeries, windows: tuple[Window, ...]) -> None:
    """Refuse windows that are wider than the values of an 8-bit source.

    Raises:
        SeriesError: a window exceeds the one that the source was made with.
    """
    for window in windows:
        if series.source_window is not None and not series.source_window.contains(window):
            raise SeriesError(
                f"window {window.name} shows HU outside of the window {series.source_window.name} "
                "that the 8-bit source was made with"
            )


@dataclass(frozen=True)
class Crop:
    """A rectangle of source pixels, square in mm. It may extend outside the image, into air."""

    left: int
    top: int
    width: int
    height: int

    def resize(self, hu: np.ndarray, size: int) -> np.ndarray:
        """Crop (rows, cols) HU and resize to (size, size), same type.

        Resizing HU instead of grey levels handles one channel instead of three, and averaging before a window
        clips gives the values that a scanner with larger pixels would have measured.
        """
        return self._resized(self._cut(hu), size)

    def resize_all(self, slices: Sequence[np.ndarray], size: int) -> Sequence[np.ndarray]:
        """Apply `resize` to up to four slices, with identical values.

        OpenCV averages areas of one four-channel image faster than those of four images. It has an even
        faster path for integer scale factors, and enlarging rounds differently: these cases are resized one
        by one.
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
        """Return the plane of the (size, size) image that `resize` makes of a slice at `source`."""
        row_scale, col_scale = self.height / size, self.width / size
        # Resizing maps pixel edges to pixel edges, so centre 0 shifts by half of the growth of a pixel.
        first_row, first_col = self.top + (row_scale - 1) / 2, self.left + (col_scale - 1) / 2
        origin = source.origin + first_row * source.row_step + first_col * source.col_step
        return Plane(origin, source.row_step * row_scale, source.col_step * col_scale)


def body_crop(
    slices: Iterable[np.ndarray],
    pixel_mm: tuple[float, float],
    shape: tuple[int, int],
    lowest_hu: float = AIR_HU,
) -> Crop:
    """Find the smallest square with a margin of 6 mm around the trunk in all `slices` (rows, cols; HU).

    Args:
        slices: from head to feet.
        pixel_mm: spacing of rows and columns.
        shape: shape of a slice; if no slice shows a body, the square around whole slices is returned.
        lowest_hu: lowest HU that an 8-bit source can hold.
    """
    found = find_trunk(slices, pixel_mm, lowest_hu)
    if found is None:
        return _square((0, 0, shape[1], shape[0]), pixel_mm, margin_mm=0.0)
    whole, trunk = (_square(box, pixel_mm, _MARGIN_MM) for box in found)
    return trunk if (whole.width - trunk.width) * pixel_mm[1] >= _WORTH_MM else whole


def _square(box: Box, pixel_mm: tuple[float, float], margin_mm: float) -> Crop:
    left, top, right, bottom = box
    row_mm, col_mm = pixel_mm
    side_mm = max((right - left) * col_mm, (bottom - top) * row_mm) + 2 * margin_mm
    width, height = round(side_mm / col_mm), round(side_mm / row_mm)
    return Crop(
        left=(left + right - width) // 2, top=(top + bottom - height) // 2, width=width, height=height
    )


def spacing_z_mm(series: CtSeries) -> float:
    """Median distance between neighbouring slices; NaN for a single slice."""
    return float(np.median(-np.diff(series.z_mm))) if len(series.z_mm) > 1 else float("nan")


def output_pixel_mm(series: CtSeries, crop: Crop, size: int) -> float:
    """Side of an output pixel."""
    return round(crop.width * series.pixel_mm[1] / size, 6)


def slice_table(series: CtSeries, used: Sequence[int]) -> pd.DataFrame:
    """Return slices.csv: one row per slice used: index, instance_number, z_mm (head positive), source."""
    return pd.DataFrame(
        {
            "index": range(len(used)),
            "instance_number": [series.instance_number(index) for index in used],
            "z_mm": [round(float(series.z_mm[index]), POSITION_DIGITS) for index in used],
            "source": [series.source(index) for index in used],
        }
    )
