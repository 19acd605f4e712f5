"""NIfTI files as label volumes on any grid."""

import nibabel as nib
import numpy as np
import pytest

from src.ct.geometry import Plane
from src.ct.label_volume import LabelVolume, open_labels
from src.ct.nifti import NiftiError
from src.ct.series import OrganFiles
from src.ct.storage import LocalFile
from tests.helpers.nifti_files import SHAPE, STEP_MM, lps_affine, patient, save, set_header

PLANE = Plane(np.array([-58.3, -60.4, 3.1]), np.array([0.0, 4.0, 0.0]), np.array([4.0, 0.0, 0.0]))


def labels_at(plane, file, ids=None):
    with LabelVolume.open(file, ids) as volume:
        return volume.sample(plane, 30, 30)


def organs(affine, order=(0, 1, 2)):
    """1 where the made-up patient's liver is."""
    return (patient(affine, order) == 120).astype(np.uint8)


def test_sample_on_another_grid_gives_the_same_labels(tmp_path):
    expected = labels_at(PLANE, save(tmp_path / "1.nii", organs(lps_affine())))
    assert 0.02 < expected.mean() < 0.5
    affine = lps_affine((2, 0, 1), (-1, 1, -1))
    turned = labels_at(PLANE, save(tmp_path / "2.nii.gz", organs(affine, (2, 0, 1)), affine))
    np.testing.assert_array_equal(turned, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64, ">i4"])
def test_sample_maps_ids_to_labels(tmp_path, dtype):
    liver = organs(lps_affine())
    foreign = save(tmp_path / "1.nii", np.where(liver, 300 if dtype != np.uint8 else 200, 7), dtype=dtype)
    expected = labels_at(PLANE, save(tmp_path / "2.nii", liver))
    np.testing.assert_array_equal(labels_at(PLANE, foreign, {300: 1, 200: 1, 8: 2}), expected)


def test_sample_rounds_scaled_labels(tmp_path):
    liver = organs(lps_affine())
    save(tmp_path / "1.nii", liver * 10)
    expected = labels_at(PLANE, save(tmp_path / "2.nii", liver * 3))
    scaled = set_header(tmp_path / "1.nii", scl_slope=0.7, scl_inter=0)  # 6.9999999 in a float32
    np.testing.assert_array_equal(labels_at(PLANE, scaled, {7: 3}), expected)


def test_sample_is_background_outside_the_volume(tmp_path):
    file = save(tmp_path / "1.nii", np.ones(SHAPE))
    shifted = Plane(PLANE.origin + np.array([80, 40, 0]), PLANE.row_step, PLANE.col_step)
    row, col = np.indices((30, 30))
    x, y = shifted.origin[0] + 4 * col, shifted.origin[1] + 4 * row
    inside = (np.abs(x) < SHAPE[0] / 2 * STEP_MM[0]) & (np.abs(y) < SHAPE[1] / 2 * STEP_MM[1])
    assert 0 < inside.mean() < 1
    np.testing.assert_array_equal(labels_at(shifted, file), inside)
    above = Plane(PLANE.origin + np.array([0, 0, 50]), PLANE.row_step, PLANE.col_step)
    assert not labels_at(above, file).any()


def test_open_refuses_unknown_ids_without_a_table(tmp_path):
    for wrong, advice in ((6, "--mask-ids"), (300, "--mask-ids"), (-1, "no label map")):
        file = save(tmp_path / "1.nii", np.where(organs(lps_affine()), wrong, 0))
        with pytest.raises(NiftiError, match=f"has the id {wrong}.*{advice}"):
            labels_at(PLANE, file)


def test_open_refuses_probabilities(tmp_path):
    for number, value in enumerate((0.5, np.nan)):
        file = save(tmp_path / f"{number}.nii", np.where(organs(lps_affine()), value, 0), dtype=np.float32)
        with pytest.raises(NiftiError, match="segmentation holds values that are not whole"):
            labels_at(PLANE, file, {1: 1})


def test_open_accepts_a_trailing_axis_of_length_one_only(tmp_path):
    liver = organs(lps_affine())
    assert labels_at(PLANE, save(tmp_path / "1.nii", liver[..., None])).any()
    with pytest.raises(NiftiError, match="segmentation has 4 dimensions"):
        labels_at(PLANE, save(tmp_path / "2.nii", np.stack([liver, liver], axis=-1)))


def test_open_refuses_a_place_that_is_not_certain(tmp_path):
    file = save(tmp_path / "1.nii", organs(lps_affine()))
    mirrored = nib.load(file.path)
    mirrored.set_qform(mirrored.affine @ np.diag([-1, 1, 1, 1]), 1)
    nib.save(mirrored, tmp_path / "2.nii")
    with pytest.raises(NiftiError, match="segmentation cannot be placed: sform and qform contradict"):
        labels_at(PLANE, LocalFile(tmp_path / "2.nii"))


def labels_of_organs(plane, *files, labels):
    with open_labels(OrganFiles(files, labels)) as volume:
        return volume.sample(plane, 30, 30)


def test_open_labels_joins_files_of_one_organ_each(tmp_path):
    """The second has a grid of its own, and overlaps the first, which counts there."""
    first = save(tmp_path / "liver.nii", organs(lps_affine()))
    affine = lps_affine((2, 0, 1), (-1, 1, -1))
    second = save(tmp_path / "spleen.nii.gz", patient(affine, (2, 0, 1)) > 0, affine)
    expected = np.where(labels_at(PLANE, first) == 1, 4, 2 * labels_at(PLANE, second))
    assert set(np.unique(expected)) == {0, 2, 4}
    np.testing.assert_array_equal(labels_of_organs(PLANE, first, second, labels=(4, 2)), expected)


def test_open_labels_refuses_a_file_of_several_organs(tmp_path):
    first = save(tmp_path / "liver.nii", np.ones(SHAPE))
    second = save(tmp_path / "spleen.nii", 2 * np.ones(SHAPE))
    reason = "segmentation spleen.nii has the id 2, where labels are 0 to 1: it is not the mask of one organ"
    with pytest.raises(NiftiError, match=reason):
        labels_of_organs(PLANE, first, second, labels=(1, 2))
