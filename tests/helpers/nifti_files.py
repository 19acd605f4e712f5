"""Small real NIfTI volumes of the made-up patient of `dicom_files`, on any grid."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from src.ct.geometry import Plane
from src.ct.storage import LocalFile
from tests.helpers.dicom_files import hu_at

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (40, 34, 9)  # voxels along left, back, head
STEP_MM = (5.0, 4.5, 8.0)


def lps_affine(
    order: Sequence[int] = (0, 1, 2), signs: Sequence[int] = (1, 1, 1), turn_degrees: float = 0.0
) -> np.ndarray:
    """Voxel to patient of a grid centred at 0: axis n runs along patient axis order[n], turned about x."""
    angle = np.deg2rad(turn_degrees)
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]], dtype=float
    )
    affine = np.eye(4)
    for column, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[:3, column] = sign * STEP_MM[axis] * turn[:, axis]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE)[list(order)] - 1) / 2)
    return affine


def patient(affine: np.ndarray, order: Sequence[int] = (0, 1, 2)) -> np.ndarray:
    """HU of the made-up patient on the voxels of a grid."""
    index = np.moveaxis(np.indices([SHAPE[axis] for axis in order]), 0, -1)
    return hu_at(*np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3], -1, 0))


def save(path: Path, values, affine=None, dtype=np.int16, kind=nib.Nifti1Image) -> LocalFile:
    """Write values as they are; `affine` in LPS."""
    affine = lps_affine() if affine is None else affine
    nib.save(kind(np.asarray(values).astype(dtype), RAS_FROM_LPS @ affine, dtype=dtype), path)
    return LocalFile(path)


def set_header(path: Path, **fields) -> LocalFile:
    """Change fields of a .nii without touching its voxels."""
    content = path.read_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[348:])
    return LocalFile(path)


def on_plane(plane: Plane, shape: tuple[int, int]) -> np.ndarray:
    """HU that the patient has at the pixels of a plane."""
    row, col = np.indices(shape)
    points = plane.origin + row[..., None] * plane.row_step + col[..., None] * plane.col_step
    return hu_at(*np.moveaxis(points, -1, 0))
