"""Segmentations in NIfTI: sampled where a CT slice lies in the patient, and written."""

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from src.core.files import atomic_path
from src.data.series import Plane

_LPS_FROM_RAS = np.diag(
    [-1.0, -1.0, 1.0, 1.0]
)  # NIfTI's x and y point right and front, DICOM's left and back


class NiftiError(Exception):
    """A segmentation that cannot be used. The message says why, in a few words."""


class LabelVolume:
    """A 3D label map with its place in the patient. An uncompressed file is read as slices ask for it."""

    def __init__(self, path: Path):
        """Open `path` (.nii or .nii.gz).

        Raises:
            NiftiError: not a NIfTI file, damaged, not 3D, or with an affine that has no inverse.
        """
        try:
            image = nib.load(path)
            self._labels = np.asanyarray(image.dataobj)
        except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
            raise NiftiError("segmentation cannot be read") from error
        if self._labels.ndim != 3:
            raise NiftiError(f"segmentation has {self._labels.ndim} dimensions, not 3")
        try:
            self._voxel_from_mm = np.linalg.inv(_LPS_FROM_RAS @ image.affine)
        except np.linalg.LinAlgError as error:
            raise NiftiError("segmentation has a singular affine") from error

    def sample(self, plane: Plane, rows: int, cols: int) -> np.ndarray:
        """Labels at the pixel centres of `plane`, nearest neighbour: (rows, cols) uint8, 0 outside.

        The affine decides alone, so the voxel axes may be permuted, flipped or oblique against the slices.
        """
        origin = self._voxel_from_mm[:3, :3] @ plane.origin + self._voxel_from_mm[:3, 3]
        row_step = self._voxel_from_mm[:3, :3] @ plane.row_step
        col_step = self._voxel_from_mm[:3, :3] @ plane.col_step
        inside = np.ones((rows, cols), dtype=bool)
        voxel = []
        for axis, length in enumerate(self._labels.shape):
            along_rows = origin[axis] + np.arange(rows)[:, None] * row_step[axis]
            # The nudge makes a centre halfway between two voxels choose the same one in every row.
            index = np.floor(along_rows + np.arange(cols) * col_step[axis] + (0.5 + 1e-6)).astype(np.intp)
            inside &= (index >= 0) & (index < length)
            voxel.append(np.clip(index, 0, length - 1))
        return np.where(inside, np.rint(self._labels[tuple(voxel)]), 0).astype(np.uint8)


def write_label_volume(path: Path, labels: np.ndarray, lps_affine: np.ndarray) -> None:
    """Write a uint8 label map (I, J, K) as NIfTI by one rename.

    `lps_affine` (4, 4) takes voxel indices to DICOM patient coordinates (mm): x to the left, y to the back.
    """
    image = nib.Nifti1Image(labels, _LPS_FROM_RAS @ lps_affine, dtype=np.uint8)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
