"""CT series and label maps in NIfTI files: memory-mapped volumes with their geometry.

Geometry comes from the affine only, for any order and direction of the axes. Values are Hounsfield units if
some are below 0, as those of fat and air are in every CT. Grey levels of 0 to 255 are converted back to HU
if their window is known.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from src.core.files import atomic_path
from src.core.isolation import Report, no_report
from src.ct.archives import unpacked
from src.ct.geometry import Plane, SliceGrid
from src.ct.nifti_affine import AffineError, choose_affine
from src.ct.series import Rejected, Remark, SeriesError
from src.ct.storage import StoredFile, UnreadableFile
from src.ct.windows import AIR_HU, Window

_LPS_FROM_RAS = np.diag(
    [-1.0, -1.0, 1.0, 1.0]
)  # NIfTI's x and y point right and front, DICOM's left and back
_MM = {"meter": 1000.0, "micron": 0.001}  # other or missing units are read as mm
_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}  # by header length, the first number of a file
_SUFFIXES = (".nii", ".nii.gz")
_SKEW_COSINE = 0.05  # highest cosine between rows and columns
_BLOCK_SLICES = 32  # as many int16 values share a cache line, and more share a page
_BLOCK_BYTES = 32 << 20
_INT16 = np.iinfo(np.int16)


class NiftiError(Exception):
    """A file that cannot be used. The message is a short reason whose subject is the file."""


def nifti_stem(name: str) -> str | None:
    """Strip .nii or .nii.gz from a file name or path; None for other files."""
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix) and len(name.rpartition("/")[2]) > len(suffix):
            return name[: -len(suffix)]
    return None


@dataclass(frozen=True)
class Volume:
    """A 3D volume as stored, memory-mapped."""

    stored: np.ndarray
    """(I, J, K), integers or floats; the values are `stored * slope + intercept`."""
    slope: float
    intercept: float
    lps_from_voxel: np.ndarray
    """(4, 4): maps voxel indices to DICOM patient coordinates (mm), x to the left, y to the back."""
    remarks: tuple[Remark, ...] = ()
    """What its user must know about the geometry."""

    @property
    def is_integer(self) -> bool:
        """Whether the data type guarantees integer values."""
        return self.stored.dtype.kind in "iu" and self.slope.is_integer() and self.intercept.is_integer()


@contextmanager
def open_volume(file: StoredFile) -> Iterator[Volume]:
    """Context manager: open a .nii or .nii.gz.

    Axes of length 1 after the third are dropped. The affine is the sform, else the qform; a remark says where
    they disagree.

    Raises:
        NiftiError: not a NIfTI file, damaged, not 3D, colour or complex, or without a valid affine.
    """
    try:
        with unpacked(file) as stream:
            yield _map_volume(stream)
    except UnreadableFile as error:
        raise NiftiError(f"cannot be read: {error}") from error


def _map_volume(stream: BinaryIO) -> Volume:
    start = stream.read(4)
    stream.seek(0)
    header_class = _HEADERS.get(int.from_bytes(start, "little")) or _HEADERS.get(int.from_bytes(start, "big"))
    if header_class is None:
        raise NiftiError("cannot be read: not a NIfTI file")
    # Damaged headers raise many kinds of errors in nibabel, truncated files a ValueError in numpy.
    try:
        header = header_class.from_fileobj(stream)
        slope, intercept = header.get_slope_inter()
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        unit = header.get_xyzt_units()[0] if int(header["xyzt_units"]) & 7 in (1, 3) else "mm"
        ras_from_voxel, remarks = choose_affine(header.get_sform(coded=True)[0], _qform(header))
    except AffineError as error:
        raise NiftiError(str(error)) from error
    except Exception as error:
        raise NiftiError("cannot be read: damaged header") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise NiftiError(f"has {len(shape)} dimensions, not 3")
    if dtype.kind not in "iuf":
        raise NiftiError("holds colours or complex numbers")
    try:
        stored = np.memmap(stream, dtype, "r", header.get_data_offset(), tuple(shape), "F")
    except (ValueError, OverflowError, OSError) as error:
        raise NiftiError("cannot be read: cut short") from error
    return Volume(
        stored.view(np.ndarray),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        np.diag([_MM.get(unit, 1.0)] * 3 + [1.0]) @ _LPS_FROM_RAS @ ras_from_voxel,
        remarks,
    )


def _qform(header: nib.Nifti1Header) -> np.ndarray | None:
    """Return the affine of the quaternion; None where its code is 0, or it is no quaternion."""
    try:
        return header.get_qform(coded=True)[0]
    except (ValueError, nib.spatialimages.HeaderDataError):
        return None


class NiftiSeries:
    """Slices of a volume, head to feet: a `CtSeries`, made by `open_nifti`.

    Args:
        name: name of the file.
        report: called with the name of each slice before it is read.
    """

    rejected: tuple[Rejected, ...] = ()
    source_window: Window | None = None

    def __init__(self, name: str, volume: Volume, report: Report = no_report) -> None:
        """Find the slices' axis. Raises `SeriesError`: not axial, or skewed."""
        self._name, self._volume, self._report = name, volume, report
        self.remarks = volume.remarks
        axes = volume.lps_from_voxel[:3, :3]
        lengths = np.linalg.norm(axes, axis=0)
        directions = axes / lengths
        self._axis = int(np.abs(directions[2]).argmax())
        cols_axis, rows_axis = (axis for axis in range(3) if axis != self._axis)  # the first is contiguous
        self._slices = volume.stored.transpose(self._axis, rows_axis, cols_axis)  # (slices, rows, cols)
        self._grid = SliceGrid(
            rows=self._slices.shape[1],
            cols=self._slices.shape[2],
            row_mm=float(lengths[rows_axis]),
            col_mm=float(lengths[cols_axis]),
            along_rows=tuple(directions[:, rows_axis].tolist()),
            along_cols=tuple(directions[:, cols_axis].tolist()),
        )
        if abs(directions[:, rows_axis] @ directions[:, cols_axis]) > _SKEW_COSINE:
            raise SeriesError("rows and columns are not at right angles")
        if not self._grid.is_axial:
            raise SeriesError("not axial")
        self._headwards = bool(axes[:, self._axis] @ self._grid.normal > 0)
        self._block: tuple[int, np.ndarray] | None = None
        self._grey_window: Window | None = None

    def find_value_range(self, source_window: Window | None) -> None:
        """Read slices until the values are known to be HU, or grey levels of `source_window`.

        Raises:
            SeriesError: no value is below 0, and the values are not grey levels, or their window is unknown.
        """
        self._grey_window = source_window if self._is_grey(source_window) else None
        self.source_window = self._grey_window or self._expressible()

    @cached_property
    def z_mm(self) -> np.ndarray:
        indices = np.array([self._stored_index(index) for index in range(len(self._slices))])
        origin, step = self._volume.lps_from_voxel[:3, 3], self._volume.lps_from_voxel[:3, self._axis]
        return (origin + indices[:, None] * step) @ self._grid.normal

    @property
    def shape(self) -> tuple[int, int]:
        return self._grid.shape

    @property
    def pixel_mm(self) -> tuple[float, float]:
        return self._grid.pixel_mm

    @property
    def orientation(self) -> str:
        return self._grid.orientation

    def other_readings(self) -> tuple[()]:
        return ()

    def read(self, index: int) -> np.ndarray:
        """Read a slice in HU, (rows, cols): int16, or float32 where there are fractions."""
        self._report(self.source(index))
        stored = self._stored(self._stored_index(index))
        if self._grey_window is not None:
            share = self._scaled(stored) / np.float32(255) - np.float32(0.5)
            hu = share * np.float32(self._grey_window.width_hu) + np.float32(self._grey_window.centre_hu)
        elif self._volume.is_integer:
            slope, intercept = int(self._volume.slope), int(self._volume.intercept)
            if (slope, intercept) == (1, 0) and stored.dtype == np.int16:  # as in most files
                hu = np.maximum(stored, np.int16(AIR_HU))
            else:
                scaled = stored.astype(np.int64) * slope + intercept
                hu = np.clip(scaled, AIR_HU, _INT16.max).astype(np.int16)
        else:
            hu = np.nan_to_num(self._scaled(stored), nan=AIR_HU, neginf=AIR_HU, posinf=_INT16.max)
            hu = np.maximum(hu, np.float32(AIR_HU))
        return self._grid.orient(hu)

    def plane(self, index: int) -> Plane:
        origin, step = self._volume.lps_from_voxel[:3, 3], self._volume.lps_from_voxel[:3, self._axis]
        return self._grid.plane(tuple((origin + self._stored_index(index) * step).tolist()))

    def instance_number(self, index: int) -> int:
        return self._stored_index(index) + 1

    def source(self, index: int) -> str:
        return f"{self._name} slice {self._stored_index(index) + 1}"

    def _stored_index(self, index: int) -> int:
        return len(self._slices) - 1 - index if self._headwards else index

    def _stored(self, index: int) -> np.ndarray:
        """Read a slice as stored, (rows, cols).

        Along the first axis neighbouring slices share memory pages, so they are read in blocks: read singly,
        each slice would touch the whole file.
        """
        if self._axis != 0:
            return np.array(self._slices[index])
        count = max(1, min(_BLOCK_SLICES, _BLOCK_BYTES // self._slices[0].nbytes))
        first = index - index % count
        if self._block is None or self._block[0] != first:
            self._block = first, np.array(self._slices[first : first + count])
        return self._block[1][index - first]

    def _scaled(self, stored: np.ndarray) -> np.ndarray:
        return stored.astype(np.float32) * np.float32(self._volume.slope) + np.float32(self._volume.intercept)

    def _is_grey(self, source_window: Window | None) -> bool:
        """Return whether the values are grey levels: a value below 0, often in the first slice, means HU."""
        highest = -np.inf
        for index in range(len(self._slices)):
            values = self._scaled(self._stored(index))
            values = values[np.isfinite(values)]
            if values.size and values.min() < 0:
                return False
            highest = max(highest, values.max(initial=-np.inf))
        if highest > 255:
            raise SeriesError("no value below 0: not Hounsfield units, in which fat and air are negative")
        if highest <= 1:
            raise SeriesError("no value below 0 and none above 1: neither Hounsfield units nor grey levels")
        if source_window is None:
            raise SeriesError("8-bit volume: say with --source-window which CT window it was made with")
        return True

    def _expressible(self) -> Window | None:
        """Range of HU that 8 bits with a rescale can express; None for wider types."""
        stored, slope = self._volume.stored.dtype, self._volume.slope
        if stored.itemsize > 1:
            return None
        ends = np.array([np.iinfo(stored).min, np.iinfo(stored).max]) * slope + self._volume.intercept
        return Window.of_range(ends.min(), ends.max(), abs(slope))


@contextmanager
def open_nifti(
    file: StoredFile, source_window: Window | None = None, report: Report = no_report
) -> Iterator[NiftiSeries]:
    """Context manager: open a .nii or .nii.gz and read one slice at a time.

    Args:
        source_window: window of a volume of grey levels 0 to 255; ignored where values are HU.
        report: called with the name of each slice before it is read.

    Raises:
        SeriesError: unreadable, not axial, or the values are neither HU nor known grey levels.
    """
    try:
        with open_volume(file) as volume:
            series = NiftiSeries(file.name, volume, report)
            series.find_value_range(source_window)
            yield series
    except NiftiError as error:
        raise SeriesError(f"volume {error}") from error


def write_label_volume(path: Path, labels: np.ndarray, lps_affine: np.ndarray) -> None:
    """Write a uint8 label map (I, J, K) as NIfTI, atomically by a rename.

    `lps_affine` (4, 4) maps voxel indices to DICOM patient coordinates (mm): x to the left, y to the back.
    """
    image = nib.Nifti1Image(labels, _LPS_FROM_RAS @ lps_affine, dtype=np.uint8)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
