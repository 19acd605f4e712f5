"""A series of whatever kind as grey slices: cut to the body, resized, windowed.

What is written to disk and what inference keeps in memory both come from here, so a model sees at inference
what it saw in training. Slices stream: whatever the length of a series, a few are in memory at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.core.isolation import report_step
from src.ct.dicom_series import scan_series
from src.ct.nifti_series import open_nifti
from src.ct.pixels import FAST_READERS, SAFE_READERS
from src.ct.series import CtSeries, Rejected, SeriesError, SliceError, unusable_series
from src.ct.storage import StoredFile, UnreadableFile
from src.ct.windows import AIR_HU, Window, apply_windows
from src.data.selection import even_indices
from src.prepare.crop import RESIZED_TOGETHER, Crop, body_crop
from src.prepare.series_source import SeriesSource

POSITION_DIGITS = 4
"""Of mm, in every table of positions."""

_CROP_SLICES = 64  # enough to find the body
_KEPT_BYTES = 64 << 20  # of slices decoded for the crop, so that most need not be decoded again


@dataclass(frozen=True)
class Caution:
    """What earlier attempts at a series have taught: how to read it without a crash."""

    pydicom_only: bool = False
    left_out: tuple[Rejected, ...] = ()
    """Files that crash every reader, or keep it busy forever."""


NO_CAUTION = Caution()


@contextmanager
def open_series(
    source: SeriesSource, source_window: Window | None = None, caution: Caution = NO_CAUTION
) -> Iterator[CtSeries]:
    """Open the series of a source, without decoding a pixel.

    Raises:
        SeriesError: no usable file, or not axial.
    """
    try:
        files = source.files.list()
    except UnreadableFile as error:
        raise unusable_series(str(error), [error]) from error
    if source.kind == "nifti":
        with open_nifti(files[0], source_window) as series:
            yield series
        return
    readers = SAFE_READERS if caution.pydicom_only else FAST_READERS
    left_out = {item.source for item in caution.left_out}
    yield scan_series(_announced(files), readers, source_window, left_out)


def _announced(files: Sequence[StoredFile]) -> Iterator[StoredFile]:
    for file in files:
        report_step(file.name)
        yield file


class GreySlices:
    """Grey slices of an open series: cut to the body, resized, windowed."""

    def __init__(self, series: CtSeries, windows: tuple[Window, ...], size: int):
        """Find the body.

        Raises:
            SeriesError: an 8-bit source does not hold what a window shows.
        """
        for window in windows:
            if series.source_window is not None and not series.source_window.contains(window):
                raise SeriesError(
                    f"window {window.name} shows HU outside of the window {series.source_window.name} "
                    "that the 8-bit source was made with"
                )
        self._series, self._windows, self._size = series, windows, size
        self._decoded: dict[int, np.ndarray] = {}
        lowest_hu = series.source_window.lowest_hu if series.source_window else AIR_HU
        self.crop = body_crop(self._crop_slices(), series.pixel_mm, series.shape, lowest_hu)

    def read(self, index: int) -> np.ndarray:
        """uint8 (size, size, C). Raises `SliceError`."""
        return apply_windows(self.crop.resize(self._hu(index), self._size), self._windows)

    def read_all(self, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray | SliceError]]:
        """Each index with what `read` gives or raises; faster, and four slices are in memory at a time."""
        for start in range(0, len(indices), RESIZED_TOGETHER):
            few = indices[start : start + RESIZED_TOGETHER]
            hu: dict[int, np.ndarray] = {}
            failed: dict[int, SliceError] = {}
            for index in few:
                try:
                    hu[index] = self._hu(index)
                except SliceError as error:
                    failed[index] = error
            cuts = dict(zip(hu, self.crop.resize_all(list(hu.values()), self._size), strict=True))
            for index in few:
                yield index, failed.get(index) or apply_windows(cuts[index], self._windows)

    def _crop_slices(self) -> Iterator[np.ndarray]:
        n_slices, kept_bytes = len(self._series.z_mm), 0
        for index in even_indices(n_slices, min(n_slices, _CROP_SLICES)):
            try:
                hu = self._read(int(index))
            except SliceError:
                continue
            kept_bytes += hu.nbytes
            if kept_bytes <= _KEPT_BYTES:
                self._decoded[int(index)] = hu
            yield hu

    def _hu(self, index: int) -> np.ndarray:
        hu = self._decoded.pop(index, None)
        return self._read(index) if hu is None else hu

    def _read(self, index: int) -> np.ndarray:
        report_step(self._series.source(index))
        return self._series.read(index)


@dataclass(frozen=True)
class GreyStack:
    """Slices of a series in memory."""

    images: np.ndarray
    """uint8 (U, size, size, C), head to feet"""
    table: pd.DataFrame
    """as `slice_table` gives it, a row an image"""
    indices: np.ndarray
    """int64 (U,) of the images among the slices of the series: those that were asked for"""
    z_mm: np.ndarray
    """(slices,) positions of the series, falling"""
    pixel_mm: float
    """of the images"""


def load_stack(
    source: SeriesSource,
    windows: tuple[Window, ...],
    size: int,
    choose: Callable[[np.ndarray], np.ndarray] | None = None,
    caution: Caution = NO_CAUTION,
) -> GreyStack:
    """Prepare a series in memory, equal to the PNGs and tables that `prepare_series` writes.

    Args:
        size: of the square output, in pixels.
        choose: gives the indices of the slices to take, rising, from the positions of all in mm, head to
            feet; only these are decoded, and one that cannot be is replaced by the nearest one that can. If
            None, all are taken that can be decoded: the series of the result has no others.

    Raises:
        SeriesError: no usable file, not axial, or no slice that can be decoded.
    """
    with open_series(source, caution=caution) as series:
        slices = GreySlices(series, windows, size)
        z_mm = np.round(np.asarray(series.z_mm, dtype=np.float64), POSITION_DIGITS)
        wanted = np.arange(len(z_mm)) if choose is None else choose(z_mm)
        read = dict(slices.read_all(np.asarray(wanted).tolist()))
        if choose is None:
            used = [index for index, image in read.items() if not isinstance(image, SliceError)]
            if not used:
                raise _no_slice(read)
            wanted, z_mm = np.arange(len(used)), z_mm[used]
        else:
            used = [_nearest_decodable(int(index), len(z_mm), slices, read) for index in wanted]
        return GreyStack(
            np.stack([read[index] for index in used]),
            slice_table(series, used),
            np.asarray(wanted, dtype=np.int64),
            z_mm,
            output_pixel_mm(series, slices.crop, size),
        )


def output_pixel_mm(series: CtSeries, crop: Crop, size: int) -> float:
    """Side of a pixel of the output."""
    return round(crop.width * series.pixel_mm[1] / size, 6)


def slice_table(series: CtSeries, used: Sequence[int]) -> pd.DataFrame:
    """slices.csv: a row a used slice, with index, instance_number, z_mm (head positive) and source."""
    return pd.DataFrame(
        {
            "index": range(len(used)),
            "instance_number": [series.instance_number(index) for index in used],
            "z_mm": [round(float(series.z_mm[index]), POSITION_DIGITS) for index in used],
            "source": [series.source(index) for index in used],
        }
    )


def _nearest_decodable(
    index: int, n_slices: int, slices: GreySlices, read: dict[int, np.ndarray | SliceError]
) -> int:
    """The slice itself where it was read, else the nearest that can be; what is tried joins `read`."""
    for distance in range(n_slices):
        for neighbour in (index - distance, index + distance):
            if not 0 <= neighbour < n_slices:
                continue
            if neighbour not in read:
                try:
                    read[neighbour] = slices.read(neighbour)
                except SliceError as error:
                    read[neighbour] = error
            if not isinstance(read[neighbour], SliceError):
                return neighbour
    raise _no_slice(read)


def _no_slice(read: dict[int, np.ndarray | SliceError]) -> SeriesError:
    errors = [error for error in read.values() if isinstance(error, SliceError)]
    return unusable_series("no slice can be decoded", [error.__cause__ for error in errors])
