"""A prepared series: masks in place, and a reason for what is missing."""

import numpy as np
import pytest

from src.ct.windows import WINDOWS
from src.data.prepared import mask_folder
from tests.helpers.dicom_files import SIDE, hu_at, write_series
from tests.helpers.nifti_files import save
from tests.helpers.prepare_runs import prepare, read_stack

FLIPPED = {"along_cols": (0, -1, 0), "along_rows": (-1, 0, 0)}


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SRP", "AIL"])
def test_prepare_series_places_masks_for_any_voxel_axes(tmp_path, axes):
    folder = write_series(tmp_path / "s", **FLIPPED)
    label_path = write_liver_label(tmp_path / "2.nii.gz", axes)
    _, images = prepare(folder, tmp_path / "out", label_path, size=SIDE)
    masks = read_stack(mask_folder(tmp_path / "out", "1", "2"))
    assert masks.shape == images.shape[:3]
    liver = images[..., 1] == WINDOWS["organ"].grey(np.array(120))
    agreement = 2 * (liver & (masks == 1)).sum() / (liver.sum() + (masks == 1).sum())
    assert agreement > 0.9
    assert set(np.unique(masks)) == {0, 1}


def write_liver_label(path, axes):
    """The liver of `hu_at` on a 3 mm grid of its own, whose voxel axes run towards `axes`."""
    directions = dict(zip("LPSRAI", np.vstack([np.eye(3), -np.eye(3)]), strict=True))
    shape, affine = (70, 70, 70), np.eye(4)
    affine[:3, :3] = 3.0 * np.array([directions[axis] for axis in axes]).T
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    index = np.moveaxis(np.indices(shape), 0, -1)
    liver = hu_at(*np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3], -1, 0)) == 120
    save(path, liver, affine, np.uint8)
    return path


@pytest.mark.parametrize(
    ("place_mm", "reason"), [(None, "segmentation cannot be read"), (5000, "lies on the slices")]
)
def test_prepare_series_without_a_usable_segmentation(tmp_path, place_mm, reason):
    folder, segmentation = write_series(tmp_path / "s", n_slices=3), tmp_path / "2.nii"
    if place_mm is None:
        segmentation.write_bytes(b"not nifti")
    else:
        far_away = np.eye(4)
        far_away[:3, 3] = place_mm
        save(segmentation, np.ones((4, 4, 4)), far_away, np.uint8)
    outcome, images = prepare(folder, tmp_path / "out", segmentation)
    assert len(images) == 3 and not outcome["row"]["masks"]
    assert reason in outcome["row"]["reason"]
    assert not (tmp_path / "out" / "masks" / "1" / "2").exists()
