"""A CT series of DICOM files: which slices belong to it, in which order, and how they lie in the patient.

Everything follows from ImagePositionPatient and ImageOrientationPatient. File names, InstanceNumber and
PatientPosition say nothing reliable about geometry.
"""

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from src.data.acquisitions import keep_one_acquisition
from src.data.dicom import FAST_READERS, DicomError, Header, Reader, read_headers, read_hu
from src.data.geometry import Plane, SliceGrid
from src.data.isolation import report_step
from src.data.series import Rejected, SeriesError
from src.data.storage import StoredFile
from src.data.windows import AIR_HU, Window

_SAME_POSITION_DECIMALS = 2  # positions closer than 0.01 mm are one
_POLARITY_SLICES = 5


@dataclass(frozen=True)
class DicomSeries:
    """Slices of one grid, head to feet: a `CtSeries`."""

    headers: tuple[Header, ...]
    rejected: tuple[Rejected, ...] = ()
    readers: tuple[Reader, ...] = FAST_READERS
    source_window: Window | None = None

    @cached_property
    def grid(self) -> SliceGrid:
        return _grid(self.headers[0])

    @cached_property
    def z_mm(self) -> np.ndarray:
        return _positions_along_normal(self.headers)

    @property
    def shape(self) -> tuple[int, int]:
        return self.grid.shape

    @property
    def pixel_mm(self) -> tuple[float, float]:
        return self.grid.pixel_mm

    @property
    def orientation(self) -> str:
        return self.grid.orientation

    def read(self, index: int) -> np.ndarray:
        return self.grid.orient(read_hu(self.headers[index], self.readers))

    def plane(self, index: int) -> Plane:
        return self.grid.plane(self.headers[index].position_mm)

    def instance_number(self, index: int) -> int:
        return self.headers[index].instance_number

    def source(self, index: int) -> str:
        return self.headers[index].file.name


def scan_series(
    files: Iterable[StoredFile],
    readers: tuple[Reader, ...] = FAST_READERS,
    source_window: Window | None = None,
    left_out: Container[str] = (),
) -> DicomSeries:
    """Read the headers of DICOM files and put their slices in order.

    No pixel is decoded, but for a few slices where the file says MONOCHROME1. Left out with a reason are
    files that are unreadable or no CT slices; slices that are not axial, or of another grid or kind of pixels
    than most; those of a second acquisition of the same region; and those at a position that another slice
    has already (the lowest InstanceNumber stays).

    Args:
        source_window: what 8-bit images without a rescale were windowed with; others are HU, and ignore it.
        left_out: names of files, or frames of files, to pass over: the caller knows why.

    Raises:
        SeriesError: no usable file, no axial slice, or 8-bit images without a window.
    """
    headers: list[Header] = []
    rejected: list[Rejected] = []
    for file in files:
        if file.name in left_out:
            continue
        try:
            headers += [header for header in read_headers(file, readers) if header.file.name not in left_out]
        except DicomError as error:
            rejected.append(Rejected(file.name, str(error)))
    if not headers:
        raise SeriesError(f"no usable file: {rejected[0].reason}" if rejected else "no .dcm file")
    headers = _keep_axial(headers, rejected)
    headers = _keep_main_grid(headers, rejected)
    headers = keep_one_acquisition(headers, _positions_along_normal(headers), rejected)
    headers = _order_head_to_feet(headers, rejected)
    windowed = headers[0].windowed
    if windowed:
        if source_window is None:
            raise SeriesError("8-bit images: say with --source-window which CT window they were made with")
        headers = [_with_window(header, source_window) for header in headers]
    headers = _with_true_polarity(headers, readers)
    rejected.sort(key=lambda item: item.source)
    return DicomSeries(tuple(headers), tuple(rejected), readers, source_window if windowed else None)


def _grid(header: Header) -> SliceGrid:
    sides = (header.rows, header.cols, header.row_mm, header.col_mm)
    return SliceGrid(*sides, header.along_rows, header.along_cols)


def _keep_axial(headers: list[Header], rejected: list[Rejected]) -> list[Header]:
    """Reformats are told by their geometry: ImageType may call them AXIAL all the same."""
    axial = []
    for header in headers:
        if _grid(header).is_axial:
            axial.append(header)
        else:
            rejected.append(Rejected(header.file.name, "not axial"))
    if not axial:
        raise SeriesError("not axial")
    return axial


def _keep_main_grid(headers: list[Header], rejected: list[Rejected]) -> list[Header]:
    """The commonest size, spacing, orientation and kind of pixels; a tie goes to the larger key."""

    def grid(header: Header) -> tuple:
        axes = (*header.along_cols, *header.along_rows)
        spacing = (round(header.row_mm, 4), round(header.col_mm, 4))
        axes = (round(value, 2) + 0.0 for value in axes)
        return (header.rows, header.cols, *spacing, *axes, header.windowed)

    counts = Counter(map(grid, headers))
    main = max(counts, key=lambda key: (counts[key], key))
    for header in headers:
        if grid(header) != main:
            reason = "another size, spacing, orientation or kind of pixels than the series"
            rejected.append(Rejected(header.file.name, reason))
    return [header for header in headers if grid(header) == main]


def _order_head_to_feet(headers: list[Header], rejected: list[Rejected]) -> list[Header]:
    positions = np.round(_positions_along_normal(headers), _SAME_POSITION_DECIMALS)
    order = sorted(
        zip(positions, headers, strict=True),
        key=lambda item: (-item[0], item[1].instance_number, item[1].file.name),
    )
    kept: list[Header] = []
    last = None
    for position, header in order:
        if position == last:
            rejected.append(Rejected(header.file.name, "same position as another slice"))
        else:
            kept.append(header)
        last = position
    return kept


def _positions_along_normal(headers: Sequence[Header]) -> np.ndarray:
    return np.array([header.position_mm for header in headers]) @ _grid(headers[0]).normal


def _with_window(header: Header, window: Window) -> Header:
    """Grey levels of a window as HU: (grey / 255 - 0.5) * width + centre, written as a rescale."""
    slope = window.width_hu / ((1 << header.bits_stored) - 1)
    return replace(header, slope=slope, intercept=window.centre_hu - window.width_hu / 2)


def _with_true_polarity(headers: list[Header], readers: tuple[Reader, ...]) -> list[Header]:
    """Decide whether MONOCHROME1 (0028,0004) means inverted values.

    By the standard it is about display alone, yet some writers invert the values with it. Air around the
    patient is darker than the patient, so a few slices show it.
    """
    flagged = [header for header in headers if header.inverted]
    contrast = 0.0
    for index in np.unique(np.linspace(0, len(flagged) - 1, _POLARITY_SLICES).astype(int)) if flagged else ():
        report_step(flagged[index].file.name)
        try:
            contrast += _middle_over_surroundings(read_hu(flagged[index], readers))
        except DicomError:
            continue
    if contrast >= 0:  # the values are inverted indeed, and turning them made the patient bright
        return headers
    return [replace(header, inverted=False) for header in headers]


def _middle_over_surroundings(hu: np.ndarray) -> float:
    """Mean HU of the middle over that of a ring at the image's inner circle; padding does not count."""
    rows, cols = (np.linspace(-1, 1, length) for length in hu.shape)
    radius = np.hypot(rows[:, None], cols)
    counts = hu > AIR_HU
    middle, ring = hu[counts & (radius < 0.4)], hu[counts & (radius > 0.85) & (radius < 1)]
    return float(middle.mean() - ring.mean()) if middle.size and ring.size else 0.0
