"""A CT series of DICOM files: which slices belong to it, in which order, and how they lie in the patient.

Everything follows from ImagePositionPatient and ImageOrientationPatient. File names, InstanceNumber and
PatientPosition say nothing reliable about geometry.
"""

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from src.core.isolation import Report, no_report
from src.ct.acquisitions import keep_one_acquisition
from src.ct.geometry import Plane, SliceGrid
from src.ct.pixels import FAST_READERS, DicomError, Header, Reader, read_headers, read_hu
from src.ct.series import Rejected, SeriesError, unusable_series
from src.ct.storage import StoredFile
from src.ct.windows import AIR_HU, Window

_SAME_POSITION_DECIMALS = 2  # positions closer than 0.01 mm are one
_POLARITY_SLICES = 5
_SAME_DIRECTION = np.cos(np.deg2rad(1.0))  # at least, of two axes of one grid: writers round, and jitter
_SAME_CENTRE_MM = 5.0  # between slices of one grid, across the patient


@dataclass(frozen=True)
class DicomSeries:
    """Slices of one grid, head to feet: a `CtSeries`."""

    headers: tuple[Header, ...]
    rejected: tuple[Rejected, ...] = ()
    readers: tuple[Reader, ...] = FAST_READERS
    source_window: Window | None = None
    report: Report = no_report
    """Called with the name of each slice before it is decoded."""

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
        self.report(self.source(index))
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
    report: Report = no_report,
) -> DicomSeries:
    """Read the headers of DICOM files and put their slices in order.

    No pixel is decoded, but for a few slices where the file says MONOCHROME1. Left out with a reason are
    files that are unreadable or no CT slices; slices that are not axial, or of another grid, kind of pixels
    or place across the patient than most; those of a second acquisition of the same region; and those at a
    position that another slice has already (the lowest InstanceNumber stays).

    Args:
        source_window: what 8-bit images without a rescale were windowed with; others are HU, and ignore it.
            Where 8 bits have a rescale, the series' own is the range that they can hold.
        left_out: names of files, or frames of files, to pass over: the caller knows why.
        report: is called with the name of each file and slice before it is read.

    Raises:
        SeriesError: no usable file, no axial slice, or 8-bit images without a window; `UnreachableSeries`
            where the disk gave no file.
    """
    headers: list[Header] = []
    rejected: list[Rejected] = []
    causes: list[BaseException | None] = []
    for file in files:
        report(file.name)
        if file.name in left_out:
            continue
        try:
            headers += [header for header in read_headers(file, readers) if header.file.name not in left_out]
        except DicomError as error:
            rejected.append(Rejected(file.name, str(error)))
            causes.append(error.__cause__)
    if not headers:
        reason = f"no usable file: {rejected[0].reason}" if rejected else "no .dcm file"
        raise unusable_series(reason, causes)
    headers = _keep_axial(headers, rejected)
    headers = _keep_main_grid(headers, rejected)
    headers = keep_one_acquisition(headers, _positions_along_normal(headers), rejected)
    headers = _keep_main_centre(headers, rejected)
    headers = _order_head_to_feet(headers, rejected)
    windowed = headers[0].windowed
    if windowed:
        if source_window is None:
            raise SeriesError("8-bit images: say with --source-window which CT window they were made with")
        headers = [_with_window(header, source_window) for header in headers]
    headers = _with_true_polarity(headers, readers, report)
    rejected.sort(key=lambda item: item.source)
    window = source_window if windowed else _expressible(headers)
    return DicomSeries(tuple(headers), tuple(rejected), readers, window, report)


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
    """The commonest size, spacing, orientation and kind of pixels; a tie goes to the larger key.

    Orientations are compared with a tolerance to the one that most slices agree with.
    """

    def grid(header: Header) -> tuple:
        spacing = (round(header.row_mm, 4), round(header.col_mm, 4))
        return (header.rows, header.cols, *spacing, header.windowed)

    def axes(header: Header) -> tuple:
        return tuple(round(value, 4) + 0.0 for value in (*header.along_cols, *header.along_rows))

    counts = Counter((grid(header), axes(header)) for header in headers)
    numbers = np.array(list(counts.values()))
    ids = {key: index for index, key in enumerate(dict.fromkeys(key for key, _ in counts))}
    grids = np.array([ids[key] for key, _ in counts])
    directions = np.array([value for _, value in counts]).reshape(-1, 2, 3)
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)

    def alike(index: int) -> np.ndarray:
        cosines = (directions * directions[index]).sum(axis=2).min(axis=1)
        return (grids == grids[index]) & (cosines >= _SAME_DIRECTION)

    keys = list(counts)
    main = max(range(len(keys)), key=lambda index: (numbers[alike(index)].sum(), keys[index]))
    kept = {keys[index] for index in np.flatnonzero(alike(main))}
    is_kept = [(grid(header), axes(header)) in kept for header in headers]
    return _split(headers, is_kept, "another size, spacing, orientation or kind of pixels", rejected)


def _keep_main_centre(headers: list[Header], rejected: list[Rejected]) -> list[Header]:
    """The commonest place of the first pixel across the patient; a tie goes to the slices nearer the head.

    It may drift in a line along the patient, as it does in slices of a tilted gantry: these are stacked along
    the table rather than along their normal.
    """
    grid, positions = _grid(headers[0]), np.array([header.position_mm for header in headers])
    order = np.lexsort((*positions.T, -np.round(positions @ grid.normal, _SAME_POSITION_DECIMALS)))
    z_mm = positions[order] @ grid.normal
    across = positions[order] @ np.array([grid.along_cols, grid.along_rows]).T  # (slices, 2)
    table = np.array([grid.along_cols, grid.along_rows])[:, 2] / grid.normal[2]
    slopes = [np.zeros(2), table]
    steps = np.diff(z_mm)
    apart = np.abs(steps) > 10.0**-_SAME_POSITION_DECIMALS
    if apart.any():
        slopes.append(np.median(np.diff(across, axis=0)[apart] / steps[apart, None], axis=0))
    is_near = max((_commonest(across - z_mm[:, None] * slope) for slope in slopes), key=np.count_nonzero)
    is_kept = np.empty(len(headers), dtype=bool)
    is_kept[order] = is_near
    return _split(headers, is_kept, "another place across the patient", rejected)


def _commonest(places_mm: np.ndarray) -> np.ndarray:
    """(n,) whether a place (n, 2) is near the one that most are near; the first of several such."""
    candidates = np.unique(np.round(places_mm), axis=0, return_index=True)[1]
    candidates.sort()
    near = (np.abs(places_mm - places_mm[index]).max(axis=1) <= _SAME_CENTRE_MM for index in candidates)
    return max(near, key=np.count_nonzero)


def _split(
    headers: Sequence[Header], is_kept: Iterable[bool], reason: str, rejected: list[Rejected]
) -> list[Header]:
    """The headers to keep; the others are rejected for `reason`."""
    kept = []
    for header, keep in zip(headers, is_kept, strict=True):
        if keep:
            kept.append(header)
        else:
            rejected.append(Rejected(header.file.name, f"{reason} than the series"))
    return kept


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


def _expressible(headers: Sequence[Header]) -> Window | None:
    """What 8 bits with a rescale to HU can hold in every slice; None where all slices have more bits."""
    few_bits = [header for header in headers if header.bits_stored <= 8]
    if not few_bits:
        return None
    ranges = []
    for header in few_bits:
        lowest = -(1 << header.bits_stored - 1) if header.signed else 0
        ends = (lowest, lowest + (1 << header.bits_stored) - 1)
        ranges.append(sorted(end * header.slope + header.intercept for end in ends))
    lows, highs = zip(*ranges, strict=True)
    return Window.of_range(max(lows), min(highs), min(abs(header.slope) for header in few_bits))


def _with_true_polarity(headers: list[Header], readers: tuple[Reader, ...], report: Report) -> list[Header]:
    """Decide whether MONOCHROME1 (0028,0004) means inverted values.

    By the standard it is about display alone, yet some writers invert the values with it. Air around the
    patient is darker than the patient, so a few slices show it.
    """
    flagged = [header for header in headers if header.inverted]
    contrast = 0.0
    for index in np.unique(np.linspace(0, len(flagged) - 1, _POLARITY_SLICES).astype(int)) if flagged else ():
        report(flagged[index].file.name)
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
