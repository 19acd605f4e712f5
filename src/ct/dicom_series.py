"""A CT series of DICOM files: its slices in anatomical order, with their geometry.

Order and geometry come from ImagePositionPatient and ImageOrientationPatient only. File names,
InstanceNumber and PatientPosition are not reliable.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from src.core.isolation import Report, no_report
from src.ct.acquisitions import keep_one_acquisition
from src.ct.dicom_header import DicomError, Header, positions_along_normal
from src.ct.dicom_readers import read_headers
from src.ct.dicom_readings import derived_remarks, other_readings
from src.ct.geometry import Plane, SliceGrid
from src.ct.mixed_scans import exclude_copies, keep_one_scan, keep_unrepeated_numbers
from src.ct.pixels import read_hu
from src.ct.series import READ_ALL, ReadSettings, Rejected, Remark, SeriesError, unusable_series
from src.ct.series_guards import SAME_CENTRE_MM, keep_main_centre, keep_main_grid, with_true_polarity
from src.ct.slice_order import order_head_to_feet
from src.ct.storage import StoredFile
from src.ct.windows import Window


@dataclass(frozen=True)
class DicomSeries:
    """Slices of one grid, head to feet: a `CtSeries`, made by `scan_series`."""

    headers: tuple[Header, ...]
    rejected: tuple[Rejected, ...] = ()
    remarks: tuple[Remark, ...] = ()
    source_window: Window | None = None
    pydicom_only: bool = False
    report: Report = no_report
    """Called with the name of each slice before it is decoded."""

    @cached_property
    def grid(self) -> SliceGrid:
        return self.headers[0].grid

    @cached_property
    def z_mm(self) -> np.ndarray:
        return positions_along_normal(self.headers)

    @property
    def shape(self) -> tuple[int, int]:
        return self.grid.shape

    @property
    def pixel_mm(self) -> tuple[float, float]:
        return self.grid.pixel_mm

    @property
    def orientation(self) -> str:
        return self.grid.orientation

    def other_readings(self) -> Iterator[tuple[Remark, "DicomSeries"]]:
        if self.source_window is None:
            for remark, headers in other_readings(self.headers):
                yield remark, replace(self, headers=tuple(headers))

    def read(self, index: int) -> np.ndarray:
        self.report(self.source(index))
        return self.grid.orient(read_hu(self.headers[index], self.pydicom_only))

    def plane(self, index: int) -> Plane:
        return self.grid.plane(self.headers[index].position_mm)

    def instance_number(self, index: int) -> int:
        return self.headers[index].instance_number

    def source(self, index: int) -> str:
        return self.headers[index].file.name


def scan_series(
    files: Iterable[StoredFile],
    source_window: Window | None = None,
    settings: ReadSettings = READ_ALL,
    report: Report = no_report,
) -> DicomSeries:
    """Read the headers of DICOM files and put their slices in order.

    No pixels are decoded, except those of a few slices where headers say MONOCHROME1 or files seem copied.

    These are rejected with a reason: files that are unreadable or no CT slices, slices that are not axial,
    and all but one of the slices at one position. If a series has several patients, scans, grids,
    acquisitions or positions across the patient, one of each is kept, and a remark says so.

    Args:
        source_window: window that 8-bit images without a rescale were made with; other images ignore it.
        settings: readers to use and files to skip.
        report: called with the name of each file and slice before it is read.

    Raises:
        SeriesError: no usable file, no axial slice, all at one height, or 8-bit images without a window.
        UnreachableSeries: no usable file because of the disk.
    """
    rejected: list[Rejected] = []
    remarks: list[Remark] = []
    headers = _read_headers(files, settings, report, rejected)
    headers = _keep_axial(headers, rejected)
    if not _is_regular(headers):
        headers = exclude_copies(headers, settings, report, rejected)
        headers = keep_one_scan(headers, rejected, remarks)
        headers = keep_main_grid(headers, rejected, remarks)
        headers = keep_one_acquisition(headers, positions_along_normal(headers), rejected, remarks)
        headers = keep_main_centre(headers, rejected, remarks)
        headers = keep_unrepeated_numbers(headers, rejected, remarks)
    headers = order_head_to_feet(headers, rejected, remarks)
    if headers[0].windowed:
        if source_window is None:
            raise SeriesError("8-bit images: say with --source-window which CT window they were made with")
        headers = [_as_hu(header, source_window) for header in headers]
    else:
        source_window = _window_of_8_bits(headers)
    if any(header.inverted for header in headers):  # this decodes a few slices
        headers = with_true_polarity(headers, settings, report)
    remarks += map(Remark, sorted({text for header in headers for text in header.mended}))
    remarks += derived_remarks(headers)
    if shifted := {header.shift_bits for header in headers} - {0}:
        remarks.append(Remark(f"HighBit: pixels lie {max(shifted)} bits above the lowest"))
    rejected.sort(key=lambda item: item.source)
    return DicomSeries(
        tuple(headers), tuple(rejected), tuple(remarks), source_window, settings.pydicom_only, report
    )


def _read_headers(
    files: Iterable[StoredFile], settings: ReadSettings, report: Report, rejected: list[Rejected]
) -> list[Header]:
    headers: list[Header] = []
    causes: list[BaseException | None] = []
    left_out = {item.source for item in settings.left_out}
    for file in files:
        report(file.name)
        if file.name in left_out:
            continue
        try:
            found = read_headers(file, settings.pydicom_only)
        except DicomError as error:
            rejected.append(Rejected(file.name, str(error)))
            causes.append(error.__cause__)
        else:
            headers += [header for header in found if header.file.name not in left_out]
    if not headers:
        reason = f"no usable file: {rejected[0].reason}" if rejected else "no .dcm file"
        raise unusable_series(reason, causes)
    return headers


def _keep_axial(headers: list[Header], rejected: list[Rejected]) -> list[Header]:
    """Keep axial slices. Their geometry decides, because ImageType may call reformats AXIAL."""
    axial = []
    for header in headers:
        if header.grid.is_axial:
            axial.append(header)
        else:
            rejected.append(Rejected(header.file.name, "not axial"))
    if not axial:
        raise SeriesError("not axial")
    return axial


def _is_regular(headers: Sequence[Header]) -> bool:
    """Return whether the slices are clearly one pass of a scanner, so that no guard would reject any.

    They then share patient, scan, grid, kind of pixels, acquisition and position across the patient, and
    their InstanceNumbers increase or decrease monotonically along the patient.
    """
    first = headers[0]
    scans = {(h.patient_id, h.study_uid, h.series_uid, h.frame_uid) for h in headers}
    shared = {(h.grid, h.windowed, h.acquisition_number, h.image_type, h.acquisition_time) for h in headers}
    positions = np.array([header.position_mm for header in headers])
    across = positions @ np.array([first.along_cols, first.along_rows]).T  # (slices, 2)
    numbers = np.array([header.instance_number for header in headers])
    steps = np.diff(positions_along_normal(headers)[np.argsort(numbers)])
    return bool(
        len(scans) == len(shared) == 1
        and (np.ptp(across, axis=0) <= SAME_CENTRE_MM).all()
        and len(np.unique(numbers)) == len(numbers)
        and ((steps >= 0).all() or (steps <= 0).all())
    )


def _as_hu(header: Header, window: Window) -> Header:
    """Express grey levels of a window in HU, as a rescale: (grey / 255 - 0.5) * width + centre."""
    slope = window.width_hu / ((1 << header.bits_stored) - 1)
    return replace(header, slope=slope, intercept=window.centre_hu - window.width_hu / 2)


def _window_of_8_bits(headers: Sequence[Header]) -> Window | None:
    """Return the HU range that 8 bits with a rescale can hold; None if most slices have more bits.

    Some writers set BitsStored of each slice to what its own values need, which loses nothing.
    """
    few_bits = [header for header in headers if header.bits_stored <= 8]
    if 2 * len(few_bits) <= len(headers):
        return None
    ranges = []
    for header in few_bits:
        lowest = -(1 << header.bits_stored - 1) if header.signed else 0
        ends = (lowest, lowest + (1 << header.bits_stored) - 1)
        ranges.append(sorted(end * header.slope + header.intercept for end in ends))
    lows, highs = zip(*ranges, strict=True)
    return Window.of_range(max(lows), min(highs), min(abs(header.slope) for header in few_bits))
