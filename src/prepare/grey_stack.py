"""A series prepared in memory for inference, equal to the images that preparation writes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.core.isolation import Report, no_report
from src.ct.series import (
    READ_ALL,
    ReadSettings,
    Remark,
    SeriesError,
    SeriesSource,
    SliceError,
    unusable_series,
)
from src.ct.windows import Window
from src.prepare.grey_slices import (
    POSITION_DIGITS,
    check_windows,
    examine,
    open_series,
    output_pixel_mm,
    read_grey_slices,
    slice_table,
)

Image = np.ndarray


@dataclass(frozen=True)
class GreyStack:
    """Prepared slices of a series in memory."""

    images: np.ndarray
    """uint8 (U, size, size, C), head to feet"""
    table: pd.DataFrame
    """`slice_table` of the images"""
    indices: np.ndarray
    """int64 (U,): requested indices among the slices of the series"""
    z_mm: np.ndarray
    """(slices,) positions of all slices of the series, decreasing"""
    pixel_mm: float
    """side of a pixel of the images"""
    remarks: tuple[Remark, ...] = ()
    """remarks of the series"""


def load_stack(
    source: SeriesSource,
    windows: tuple[Window, ...],
    size: int,
    choose: Callable[[np.ndarray], np.ndarray] | None = None,
    settings: ReadSettings = READ_ALL,
    report: Report = no_report,
) -> GreyStack:
    """Prepare a series in memory, equal to the images and tables that `prepare_series` writes.

    Args:
        size: side of the square output, in pixels.
        choose: returns the increasing indices of the slices to take, given the positions of all slices in mm,
            head to feet; only these are decoded, and a slice that cannot be decoded is replaced by the
            nearest that can. None takes all decodable slices, and the result does not count any others.

    Raises:
        SeriesError: no usable file, not axial, or no slice that can be decoded.
    """
    with open_series(source, None, settings, report) as series:
        check_windows(series, windows)
        examined = examine(series)
        series = examined.series
        z_mm = np.round(np.asarray(series.z_mm, dtype=np.float64), POSITION_DIGITS)
        wanted = np.arange(len(z_mm)) if choose is None else choose(z_mm)
        images = dict(read_grey_slices(examined, np.asarray(wanted).tolist(), windows, size))
        if choose is None:
            used = [index for index, image in images.items() if not isinstance(image, SliceError)]
            if not used:
                raise _no_slice(images)
            wanted, z_mm = np.arange(len(used)), z_mm[used]
        else:

            def read(index: int) -> Image | SliceError:
                return next(read_grey_slices(examined, [index], windows, size))[1]

            used = [_nearest_decodable(int(index), len(z_mm), images, read) for index in wanted]
        return GreyStack(
            np.stack([images[index] for index in used]),
            slice_table(series, used),
            np.asarray(wanted, dtype=np.int64),
            z_mm,
            output_pixel_mm(series, examined.crop, size),
            examined.remarks,
        )


def _nearest_decodable(
    index: int,
    n_slices: int,
    images: dict[int, Image | SliceError],
    read: Callable[[int], Image | SliceError],
) -> int:
    """Return the slice if it was decoded, else the nearest decodable one; `images` caches each attempt."""
    for distance in range(n_slices):
        for neighbour in (index - distance, index + distance):
            if not 0 <= neighbour < n_slices:
                continue
            if neighbour not in images:
                images[neighbour] = read(neighbour)
            if not isinstance(images[neighbour], SliceError):
                return neighbour
    raise _no_slice(images)


def _no_slice(images: dict[int, Image | SliceError]) -> SeriesError:
    errors = [image for image in images.values() if isinstance(image, SliceError)]
    return unusable_series(f"no slice can be decoded: {errors[0]}", [error.__cause__ for error in errors])
