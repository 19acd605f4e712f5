"""Organ masks from NIfTI files: label maps sampled at the pixels of slices."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import PurePosixPath

import numpy as np

from src.core.targets import ORGANS
from src.ct.geometry import Plane
from src.ct.nifti import NiftiError, Volume, open_volume
from src.ct.series import OrganFiles
from src.ct.storage import StoredFile

_SCANNED_BYTES = 16 << 20  # read per block


class LabelVolume:
    """A 3D label map with its geometry, made by `open`."""

    def __init__(self, volume: Volume, ids: Mapping[int, int] | None) -> None:
        self._volume, self._ids = volume, ids
        self._voxel_from_mm = np.linalg.inv(volume.lps_from_voxel)

    @classmethod
    @contextmanager
    def open(
        cls, file: StoredFile, ids: Mapping[int, int] | None = None, organ: int | None = None
    ) -> Iterator["LabelVolume"]:
        """Context manager: open a .nii or .nii.gz and check all of its labels.

        Args:
            ids: maps ids of the file to the kit's labels, other ids to background; None where the ids are
                already the kit's, and other ids are refused.
            organ: the kit's label of a file that is 1 where this organ is and 0 elsewhere, instead of `ids`.

        Raises:
            NiftiError: see `open_volume`; or the place is doubtful, or the values are not integers, or not
                labels of the kit.
        """
        try:
            with open_volume(file) as volume:
                for remark in volume.remarks:
                    if remark.doubtful:
                        raise NiftiError(f"cannot be placed: {remark.text}")
                if organ is not None:
                    _check_labels(volume, highest=1)
                    ids = {1: organ}
                else:
                    _check_labels(volume, highest=len(ORGANS) if ids is None else None)
                yield cls(volume, ids)
        except NiftiError as error:
            name = "" if organ is None else f"{PurePosixPath(file.name).name} "
            raise NiftiError(f"segmentation {name}{error}") from error

    def sample(self, plane: Plane, rows: int, cols: int) -> np.ndarray:
        """Sample labels at the pixel centres of `plane`, nearest neighbour: (rows, cols) uint8, 0 outside.

        Only the affine is used: voxel axes may be permuted, flipped or oblique to the slices, and voxels may
        have any size.
        """
        origin = self._voxel_from_mm[:3, :3] @ plane.origin + self._voxel_from_mm[:3, 3]
        row_step = self._voxel_from_mm[:3, :3] @ plane.row_step
        col_step = self._voxel_from_mm[:3, :3] @ plane.col_step
        inside = np.ones((rows, cols), dtype=bool)
        voxel = []
        for axis, length in enumerate(self._volume.stored.shape):
            along_rows = origin[axis] + np.arange(rows)[:, None] * row_step[axis]
            # The offset makes a centre halfway between two voxels choose the same voxel in every row.
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


class OrganVolumes:
    """Masks of one organ each, sampled together; where two overlap, the first counts."""

    def __init__(self, volumes: Sequence[LabelVolume]) -> None:
        self._volumes = volumes

    def sample(self, plane: Plane, rows: int, cols: int) -> np.ndarray:
        """Sample labels at the pixel centres of `plane`, see `LabelVolume.sample`."""
        labels = np.zeros((rows, cols), dtype=np.uint8)
        for volume in self._volumes:
            np.copyto(labels, volume.sample(plane, rows, cols), where=labels == 0)
        return labels


@contextmanager
def open_labels(
    segmentation: StoredFile | OrganFiles, ids: Mapping[int, int] | None = None
) -> Iterator[LabelVolume | OrganVolumes]:
    """Context manager: open a label map, or the files of one organ each.

    Args:
        ids: see `LabelVolume.open`; files of one organ need none.

    Raises:
        NiftiError: see `LabelVolume.open`.
    """
    with ExitStack() as stack:
        if isinstance(segmentation, OrganFiles):
            pairs = zip(segmentation.files, segmentation.labels, strict=True)
            volumes = (LabelVolume.open(file, organ=label) for file, label in pairs)
            yield OrganVolumes([stack.enter_context(volume) for volume in volumes])
        else:
            yield stack.enter_context(LabelVolume.open(segmentation, ids))


def _values(volume: Volume, stored: np.ndarray) -> np.ndarray:
    if volume.slope == 1 and volume.intercept == 0:
        return stored
    return np.rint(stored * volume.slope + volume.intercept)


def _check_labels(volume: Volume, highest: int | None) -> None:
    """Refuse a volume that is not a label map, reading a few slices at a time.

    `highest` is the highest id that the file may have: of the kit's labels, or 1 for a file of one organ;
    None where a table maps the ids.
    """
    planes = max(1, _SCANNED_BYTES // max(1, volume.stored[..., 0].nbytes))
    for first in range(0, volume.stored.shape[2], planes):
        block = volume.stored[..., first : first + planes]
        if not volume.is_integer:
            scaled = block.astype(np.float64) * volume.slope + volume.intercept
            # A scaled label has the rounding error of a float32; NaN is rejected too.
            if not (np.abs(scaled - np.rint(scaled)) < 1e-3).all():
                raise NiftiError("holds values that are not whole numbers")
        for identity in map(int, _values(volume, np.array([block.min(), block.max()]))):
            if identity < 0:
                raise NiftiError(f"has the id {identity}: it is no label map, but perhaps a CT")
            if highest is not None and identity > highest:
                advice = "name a table with --mask-ids" if highest > 1 else "it is not the mask of one organ"
                raise NiftiError(f"has the id {identity}, where labels are 0 to {highest}: {advice}")
