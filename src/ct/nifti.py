"""NIfTI files: volumes mapped into memory with their place in the patient, label maps sampled and written."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from src.core.files import atomic_path
from src.ct.archives import unpacked
from src.ct.geometry import Plane
from src.ct.organ_labels import ORGANS
from src.ct.storage import StoredFile, UnreadableFile

_LPS_FROM_RAS = np.diag(
    [-1.0, -1.0, 1.0, 1.0]
)  # NIfTI's x and y point right and front, DICOM's left and back
_MM = {"meter": 1000.0, "micron": 0.001}  # other units, and none, are taken for mm
_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}  # by their length, which is their first number
_SUFFIXES = (".nii", ".nii.gz")
_SCANNED_BYTES = 16 << 20  # at a time
_FLAT = 1e-3  # volume of the parallelepiped of three unit axes below which they are taken to lie in a plane


class NiftiError(Exception):
    """A file that cannot be used. The message says why, in a few words, with the file as its subject."""


def nifti_stem(name: str) -> str | None:
    """A file name, or path, without .nii or .nii.gz; None for other files."""
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix) and len(name.rpartition("/")[2]) > len(suffix):
            return name[: -len(suffix)]
    return None


@dataclass(frozen=True)
class Volume:
    """A 3D volume as stored, mapped into memory rather than read."""

    stored: np.ndarray
    """(I, J, K), integers or real numbers; the values are `stored * slope + intercept`."""
    slope: float
    intercept: float
    lps_from_voxel: np.ndarray
    """(4, 4): voxel indices to DICOM patient coordinates (mm), x to the left, y to the back."""

    @property
    def is_integer(self) -> bool:
        """Whether every value is a whole number by its type."""
        return self.stored.dtype.kind in "iu" and self.slope.is_integer() and self.intercept.is_integer()


@contextmanager
def open_volume(file: StoredFile) -> Iterator[Volume]:
    """Open a .nii or .nii.gz for as long as the context lasts.

    Axes of length 1 after the third are dropped. The affine is the sform, else the qform.

    Raises:
        NiftiError: not a NIfTI file, damaged, not 3D, colour or complex, or without a place in the patient.
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
    # nibabel meets damaged headers with errors of many kinds, numpy a file too short with a ValueError.
    try:
        header = header_class.from_fileobj(stream)
        slope, intercept = header.get_slope_inter()
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        unit = header.get_xyzt_units()[0] if int(header["xyzt_units"]) & 7 in (1, 3) else "mm"
        affine = np.diag([_MM.get(unit, 1.0)] * 3 + [1.0]) @ _LPS_FROM_RAS @ header.get_best_affine()
        placed = bool(header["qform_code"] or header["sform_code"])
    except Exception as error:
        raise NiftiError("cannot be read: damaged header") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise NiftiError(f"has {len(shape)} dimensions, not 3")
    if dtype.kind not in "iuf":
        raise NiftiError("holds colours or complex numbers")
    if not placed or np.array_equal(header.get_best_affine(), np.eye(4)):
        # An identity is what writers put where they know nothing: no scanner has its first voxel at 0, 0, 0.
        raise NiftiError("does not say how it lies in the patient: its affine is missing or the identity")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not lengths.all():
        raise NiftiError("has a singular affine")
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < _FLAT:
        raise NiftiError("has a singular affine")
    try:
        stored = np.memmap(stream, dtype, "r", header.get_data_offset(), tuple(shape), "F")
    except (ValueError, OverflowError, OSError) as error:
        raise NiftiError("cannot be read: cut short") from error
    return Volume(
        stored.view(np.ndarray),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        affine,
    )


class LabelVolume:
    """A 3D label map with its place in the patient. `open` makes one."""

    def __init__(self, volume: Volume, ids: Mapping[int, int] | None):
        """Check the labels. Raises `NiftiError`."""
        _check_labels(volume, highest=len(ORGANS) if ids is None else None)
        self._volume, self._ids = volume, ids
        self._voxel_from_mm = np.linalg.inv(volume.lps_from_voxel)

    @classmethod
    @contextmanager
    def open(cls, file: StoredFile, ids: Mapping[int, int] | None = None) -> Iterator["LabelVolume"]:
        """Open a .nii or .nii.gz for as long as the context lasts.

        Args:
            ids: the kit's label of each id in the file, others become background; None where the ids are the
                kit's own, and others are refused.

        Raises:
            NiftiError: see `open_volume`; or values that are not whole numbers, or no labels of the kit.
        """
        try:
            with open_volume(file) as volume:
                yield cls(volume, ids)
        except NiftiError as error:
            raise NiftiError(f"segmentation {error}") from error

    def sample(self, plane: Plane, rows: int, cols: int) -> np.ndarray:
        """Labels at the pixel centres of `plane`, nearest neighbour: (rows, cols) uint8, 0 outside.

        The affine decides alone, so the voxel axes may be permuted, flipped or oblique against the slices,
        and the voxels of another size.
        """
        origin = self._voxel_from_mm[:3, :3] @ plane.origin + self._voxel_from_mm[:3, 3]
        row_step = self._voxel_from_mm[:3, :3] @ plane.row_step
        col_step = self._voxel_from_mm[:3, :3] @ plane.col_step
        inside = np.ones((rows, cols), dtype=bool)
        voxel = []
        for axis, length in enumerate(self._volume.stored.shape):
            along_rows = origin[axis] + np.arange(rows)[:, None] * row_step[axis]
            # The nudge makes a centre halfway between two voxels choose the same one in every row.
            index = np.floor(along_rows + np.arange(cols) * col_step[axis] + (0.5 + 1e-6)).astype(np.intp)
            inside &= (index >= 0) & (index < length)
            voxel.append(np.clip(index, 0, length - 1))
        ids = _values(self._volume, self._volume.stored[tuple(voxel)])
        labels = ids if self._ids is None else self._mapped(ids)
        return np.where(inside, labels, 0).astype(np.uint8)

    def _mapped(self, ids: np.ndarray) -> np.ndarray:
        labels = np.zeros(ids.shape, dtype=np.uint8)
        for identity, label in self._ids.items():
            labels[ids == identity] = label
        return labels


def _values(volume: Volume, stored: np.ndarray) -> np.ndarray:
    if volume.slope == 1 and volume.intercept == 0:
        return stored
    return np.rint(stored * volume.slope + volume.intercept)


def _check_labels(volume: Volume, highest: int | None) -> None:
    """Refuse what is no label map, reading some slices at a time.

    `highest` is that of the kit's own labels; None where a table says what the ids are.
    """
    planes = max(1, _SCANNED_BYTES // max(1, volume.stored[..., 0].nbytes))
    for first in range(0, volume.stored.shape[2], planes):
        block = volume.stored[..., first : first + planes]
        if not volume.is_integer:
            scaled = block.astype(np.float64) * volume.slope + volume.intercept
            # A scaled label comes back with the rounding of a float32; nan fails the comparison.
            if not (np.abs(scaled - np.rint(scaled)) < 1e-3).all():
                raise NiftiError("holds values that are not whole numbers")
        for identity in map(int, _values(volume, np.array([block.min(), block.max()]))):
            if identity < 0:
                raise NiftiError(f"has the id {identity}: it is no label map, but perhaps a CT")
            if highest is not None and identity > highest:
                raise NiftiError(
                    f"has the id {identity}, where labels are 0 to {highest}: name a table with --mask-ids"
                )


def write_label_volume(path: Path, labels: np.ndarray, lps_affine: np.ndarray) -> None:
    """Write a uint8 label map (I, J, K) as NIfTI by one rename.

    `lps_affine` (4, 4) takes voxel indices to DICOM patient coordinates (mm): x to the left, y to the back.
    """
    image = nib.Nifti1Image(labels, _LPS_FROM_RAS @ lps_affine, dtype=np.uint8)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
