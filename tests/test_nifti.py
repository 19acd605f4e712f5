"""NIfTI volumes as CT series and as label maps: the affine decides where everything lies, and HU stay HU."""

import gzip
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import hu_at

from src.core.errors import UserError
from src.data.geometry import Plane
from src.data.mask_ids import read_mask_ids
from src.data.nifti import LabelVolume, NiftiError, nifti_stem, open_volume
from src.data.nifti_series import open_nifti
from src.data.series import SeriesError, spacing_z_mm
from src.data.stack import ORGANS
from src.data.storage import LocalFile
from src.data.windows import AIR_HU, Window

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (40, 34, 9)  # along left, back, head
STEP_MM = (5.0, 4.5, 8.0)
SOFT = Window("soft", 50, 400)


def lps_affine(order=(0, 1, 2), signs=(1, 1, 1), turn_degrees=0.0):
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


def patient(affine, order=(0, 1, 2)):
    """HU of the made-up patient on the voxels of a grid."""
    index = np.moveaxis(np.indices([SHAPE[axis] for axis in order]), 0, -1)
    return hu_at(*np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3], -1, 0))


def save(path, values, affine=None, dtype=np.int16, kind=nib.Nifti1Image):
    """Write values as they are; `affine` in LPS."""
    affine = lps_affine() if affine is None else affine
    nib.save(kind(np.asarray(values).astype(dtype), RAS_FROM_LPS @ affine, dtype=dtype), path)
    return LocalFile(path)


def set_header(path, **fields):
    """Change fields of a .nii without touching its voxels."""
    content = path.read_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[348:])
    return LocalFile(path)


def refusal(file):
    with pytest.raises(SeriesError) as caught, open_nifti(file):
        pass
    return str(caught.value)


def on_plane(plane, shape):
    """HU that the patient has at the pixels of a plane."""
    row, col = np.indices(shape)
    points = plane.origin + row[..., None] * plane.row_step + col[..., None] * plane.col_step
    return hu_at(*np.moveaxis(points, -1, 0))


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_any_voxel_axes_come_out_head_first_with_left_on_the_right_and_front_up(tmp_path, order):
    for number, signs in enumerate(product((1, -1), repeat=3)):
        affine = lps_affine(order, signs)
        file = save(tmp_path / f"{number}.nii", patient(affine, order), affine)
        with open_nifti(file) as series:
            assert series.shape == (SHAPE[1], SHAPE[0])
            assert series.pixel_mm == pytest.approx((STEP_MM[1], STEP_MM[0]))
            assert (np.diff(series.z_mm) < 0).all() and spacing_z_mm(series) == pytest.approx(STEP_MM[2])
            for index in range(len(series.z_mm)):
                plane = series.plane(index)
                assert plane.col_step[0] > 0 and plane.row_step[1] > 0
                assert plane.origin[2] == pytest.approx(series.z_mm[index])
                np.testing.assert_array_equal(series.read(index), on_plane(plane, series.shape))


@pytest.mark.parametrize("turn_degrees", [-30, 20])
def test_tilted_slices_keep_their_place(tmp_path, turn_degrees):
    affine = lps_affine((1, 2, 0), (1, -1, -1), turn_degrees)
    with open_nifti(save(tmp_path / "1.nii", patient(affine, (1, 2, 0)), affine)) as series:
        assert spacing_z_mm(series) == pytest.approx(STEP_MM[2], rel=1e-5)
        for index in range(len(series.z_mm)):
            expected = on_plane(series.plane(index), series.shape)
            assert (series.read(index) == expected).mean() > 0.995  # float32 moves an edge or two


def test_slices_too_oblique_are_refused(tmp_path):
    affine = lps_affine(turn_degrees=45)
    with (
        pytest.raises(SeriesError, match="not axial"),
        open_nifti(save(tmp_path / "1.nii", patient(affine), affine)),
    ):
        pass


def test_skewed_axes_are_refused(tmp_path):
    affine = lps_affine()
    affine[0, 1] = 2.0
    with (
        pytest.raises(SeriesError, match="right angles"),
        open_nifti(save(tmp_path / "1.nii", patient(affine), affine)),
    ):
        pass


def test_a_gantry_tilt_written_as_shear_is_kept(tmp_path):
    affine = lps_affine()
    affine[1, 2] = 3.0  # each slice is shifted to the back
    with open_nifti(save(tmp_path / "1.nii", patient(affine), affine)) as series:
        assert series.z_mm[0] - series.z_mm[1] == pytest.approx(STEP_MM[2])
        for index in range(len(series.z_mm)):
            np.testing.assert_array_equal(series.read(index), on_plane(series.plane(index), series.shape))


@pytest.mark.parametrize("dtype", [np.int16, ">i2", np.int32, np.int64, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_hu_are_the_same_in_every_type(tmp_path, dtype, suffix):
    hu = patient(lps_affine())
    with open_nifti(save(tmp_path / f"1{suffix}", hu, dtype=dtype)) as series:
        image = series.read(3)
        assert image.dtype == (np.int16 if np.dtype(dtype).kind == "i" else np.float32)
        np.testing.assert_array_equal(image, on_plane(series.plane(3), series.shape))


def test_nifti_2_is_read(tmp_path):
    with open_nifti(save(tmp_path / "1.nii", patient(lps_affine()), kind=nib.Nifti2Image)) as series:
        np.testing.assert_array_equal(series.read(3), on_plane(series.plane(3), series.shape))


def test_slope_and_intercept_are_applied(tmp_path):
    hu = patient(lps_affine())
    save(tmp_path / "1.nii", hu + 1024, dtype=np.uint16)
    with open_nifti(set_header(tmp_path / "1.nii", scl_slope=1, scl_inter=-1024)) as series:
        assert series.read(3).dtype == np.int16
        np.testing.assert_array_equal(series.read(3), on_plane(series.plane(3), series.shape))
    save(tmp_path / "2.nii", np.rint(hu / 0.5), dtype=np.int16)
    with open_nifti(set_header(tmp_path / "2.nii", scl_slope=0.5, scl_inter=0.25)) as series:
        assert series.read(3).dtype == np.float32
        np.testing.assert_array_equal(series.read(3), on_plane(series.plane(3), series.shape) + 0.25)


def test_what_is_no_number_or_below_air_is_air(tmp_path):
    hu = patient(lps_affine())
    hu[0, 0], hu[1, 0], hu[2, 0], hu[3, 0] = np.nan, -np.inf, -3024, np.inf
    with open_nifti(save(tmp_path / "1.nii", hu, dtype=np.float32)) as series:
        np.testing.assert_array_equal(series.read(0)[0, :4], [AIR_HU, AIR_HU, AIR_HU, 32767])
    with open_nifti(
        save(tmp_path / "2.nii", np.nan_to_num(hu, posinf=40000, neginf=-9000), dtype=np.int32)
    ) as series:
        np.testing.assert_array_equal(series.read(0)[0, 1:4], [AIR_HU, AIR_HU, 32767])
    with open_nifti(save(tmp_path / "3.nii", np.where(hu > -900, 40, -3024), dtype=np.int16)) as series:
        assert series.read(0).min() == AIR_HU


def test_trailing_axes_of_length_one_do_not_matter(tmp_path):
    with open_nifti(save(tmp_path / "1.nii", patient(lps_affine())[..., None, None])) as series:
        assert series.shape == (SHAPE[1], SHAPE[0])


def test_missing_units_are_mm_and_metres_are_metres(tmp_path):
    save(tmp_path / "1.nii", patient(lps_affine()))
    with open_nifti(set_header(tmp_path / "1.nii", xyzt_units=0)) as series:
        assert series.pixel_mm[1] == pytest.approx(STEP_MM[0])
    with open_nifti(set_header(tmp_path / "1.nii", xyzt_units=1)) as series:
        assert series.pixel_mm[1] == pytest.approx(STEP_MM[0] * 1000)


def test_a_slice_names_its_file_and_its_number_there(tmp_path):
    with open_nifti(save(tmp_path / "ct.nii", patient(lps_affine()))) as series:
        assert (series.source(0), series.instance_number(0)) == (f"ct.nii slice {SHAPE[2]}", SHAPE[2])
        assert (series.source(SHAPE[2] - 1), series.instance_number(SHAPE[2] - 1)) == ("ct.nii slice 1", 1)


# Grey levels


def test_grey_levels_become_hu_again_through_their_window(tmp_path):
    hu = patient(lps_affine())
    for number, dtype in enumerate((np.uint8, np.int16, np.float32)):
        with open_nifti(save(tmp_path / f"{number}.nii", SOFT.grey(hu), dtype=dtype), SOFT) as series:
            assert series.source_window == SOFT
            expected = np.clip(on_plane(series.plane(3), series.shape), -150, 250)
            assert series.read(3).dtype == np.float32
            assert np.abs(series.read(3) - expected).max() <= 400 / 255 / 2 + 1e-4


def test_grey_levels_without_a_window_are_refused(tmp_path):
    grey = SOFT.grey(patient(lps_affine()))
    for number, dtype in enumerate((np.uint8, np.float32)):
        file = save(tmp_path / f"{number}.nii", grey, dtype=dtype)
        with pytest.raises(SeriesError, match="8-bit volume: say with --source-window"), open_nifti(file):
            pass


def test_a_stated_window_leaves_hu_alone(tmp_path):
    with open_nifti(save(tmp_path / "1.nii", patient(lps_affine())), SOFT) as series:
        assert series.source_window is None
        np.testing.assert_array_equal(series.read(3), on_plane(series.plane(3), series.shape))


def test_values_that_are_never_negative_are_no_hu(tmp_path):
    file = save(tmp_path / "1.nii", patient(lps_affine()) + 1024)
    with pytest.raises(SeriesError, match="no value below 0"), open_nifti(file, SOFT):
        pass


# Refusals


def test_what_is_no_volume_is_refused_with_a_reason(tmp_path):
    hu = patient(lps_affine())
    assert refusal(save(tmp_path / "1.nii", np.stack([hu, hu], axis=-1))) == "volume has 4 dimensions, not 3"
    assert refusal(save(tmp_path / "2.nii", hu[..., 0])) == "volume has 2 dimensions, not 3"
    colour = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "colours" in refusal(save(tmp_path / "3.nii", colour, dtype=colour.dtype))
    assert "complex" in refusal(save(tmp_path / "4.nii", hu, dtype=np.complex64))


def test_a_volume_without_a_place_in_the_patient_is_refused(tmp_path):
    hu = patient(lps_affine())
    path = tmp_path / "1.nii"
    save(path, hu)
    assert "affine is missing" in refusal(set_header(path, sform_code=0, qform_code=0))
    assert "the identity" in refusal(save(path, hu, affine=RAS_FROM_LPS))
    save(path, hu)
    zero = {f"srow_{axis}": 0 for axis in "xyz"}
    assert "singular" in refusal(set_header(path, **zero))
    flat = {"srow_z": [5, 0, 0, 0], "srow_x": [5, 0, 0, 0]}
    assert "singular" in refusal(set_header(path, **flat))
    assert "singular" in refusal(set_header(path, srow_x=[np.nan, 0, 0, 0]))


def test_damaged_files_are_refused_with_a_reason(tmp_path):
    whole = save(tmp_path / "1.nii", patient(lps_affine())).path.read_bytes()
    packed = gzip.compress(whole)
    for content, reason in {
        b"": "not a NIfTI file",
        b"no volume at all": "not a NIfTI file",
        whole[:200]: "damaged header",
        whole[:-10]: "cut short",
        packed[:-20]: "gzip content is cut short",
        packed[:400] + b"12345678" + packed[408:]: "gzip content is damaged",
    }.items():
        (tmp_path / "2.nii.gz").write_bytes(content)
        assert reason in refusal(LocalFile(tmp_path / "2.nii.gz"))
    assert "No such file" in refusal(LocalFile(tmp_path / "3.nii"))


def test_compression_is_seen_by_content_not_by_name(tmp_path):
    whole = save(tmp_path / "1.nii", patient(lps_affine())).path.read_bytes()
    (tmp_path / "2.nii").write_bytes(gzip.compress(whole))
    (tmp_path / "3.nii.gz").write_bytes(whole)
    for name in ("2.nii", "3.nii.gz"):
        with open_nifti(LocalFile(tmp_path / name)) as series:
            np.testing.assert_array_equal(series.read(3), on_plane(series.plane(3), series.shape))


def test_nothing_unpacked_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_nifti(save(tmp_path / "1.nii.gz", patient(lps_affine()))) as series:
        assert series.read(0) is not None
        assert [path.name for path in tmp_path.iterdir()] == ["1.nii.gz"]  # not even while it is open


def test_stems():
    assert [nifti_stem(name) for name in ("a.nii", "b/c.d.NII.GZ", "x.gz", ".nii", "b/.nii.gz")] == [
        "a",
        "b/c.d",
        None,
        None,
        None,
    ]


# Segmentations


def labels_at(plane, file, ids=None):
    with LabelVolume.open(file, ids) as volume:
        return volume.sample(plane, 30, 30)


PLANE = Plane(np.array([-58.3, -60.4, 3.1]), np.array([0.0, 4.0, 0.0]), np.array([4.0, 0.0, 0.0]))


def organs(affine, order=(0, 1, 2)):
    """1 where the made-up patient's liver is."""
    return (patient(affine, order) == 120).astype(np.uint8)


def test_a_segmentation_on_another_grid_lands_at_the_same_place(tmp_path):
    expected = labels_at(PLANE, save(tmp_path / "1.nii", organs(lps_affine())))
    assert 0.02 < expected.mean() < 0.5
    affine = lps_affine((2, 0, 1), (-1, 1, -1))
    turned = labels_at(PLANE, save(tmp_path / "2.nii.gz", organs(affine, (2, 0, 1)), affine))
    np.testing.assert_array_equal(turned, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64, ">i4"])
def test_ids_are_mapped_to_the_kits_labels(tmp_path, dtype):
    liver = organs(lps_affine())
    foreign = save(tmp_path / "1.nii", np.where(liver, 300 if dtype != np.uint8 else 200, 7), dtype=dtype)
    expected = labels_at(PLANE, save(tmp_path / "2.nii", liver))
    np.testing.assert_array_equal(labels_at(PLANE, foreign, {300: 1, 200: 1, 8: 2}), expected)


def test_scaled_labels_are_rounded(tmp_path):
    liver = organs(lps_affine())
    save(tmp_path / "1.nii", liver * 10)
    expected = labels_at(PLANE, save(tmp_path / "2.nii", liver * 3))
    scaled = set_header(tmp_path / "1.nii", scl_slope=0.7, scl_inter=0)  # 6.9999999 in a float32
    np.testing.assert_array_equal(labels_at(PLANE, scaled, {7: 3}), expected)


def test_outside_the_segmentation_there_is_no_organ(tmp_path):
    file = save(tmp_path / "1.nii", np.ones(SHAPE))
    shifted = Plane(PLANE.origin + np.array([80, 40, 0]), PLANE.row_step, PLANE.col_step)
    row, col = np.indices((30, 30))
    x, y = shifted.origin[0] + 4 * col, shifted.origin[1] + 4 * row
    inside = (np.abs(x) < SHAPE[0] / 2 * STEP_MM[0]) & (np.abs(y) < SHAPE[1] / 2 * STEP_MM[1])
    assert 0 < inside.mean() < 1
    np.testing.assert_array_equal(labels_at(shifted, file), inside)
    above = Plane(PLANE.origin + np.array([0, 0, 50]), PLANE.row_step, PLANE.col_step)
    assert not labels_at(above, file).any()


def test_ids_that_need_a_table_are_refused_without_one(tmp_path):
    for wrong in (6, 300, -1):
        file = save(tmp_path / "1.nii", np.where(organs(lps_affine()), wrong, 0))
        with pytest.raises(NiftiError, match=f"has the id {wrong}.*--mask-ids"):
            labels_at(PLANE, file)


def test_probabilities_are_no_labels(tmp_path):
    for number, value in enumerate((0.5, np.nan)):
        file = save(tmp_path / f"{number}.nii", np.where(organs(lps_affine()), value, 0), dtype=np.float32)
        with pytest.raises(NiftiError, match="segmentation holds values that are not whole"):
            labels_at(PLANE, file, {1: 1})


def test_a_segmentation_with_a_trailing_axis_is_fine_and_a_time_series_is_not(tmp_path):
    liver = organs(lps_affine())
    assert labels_at(PLANE, save(tmp_path / "1.nii", liver[..., None])).any()
    with pytest.raises(NiftiError, match="segmentation has 4 dimensions"):
        labels_at(PLANE, save(tmp_path / "2.nii", np.stack([liver, liver], axis=-1)))


def test_a_volume_is_mapped_rather_than_read(tmp_path):
    with open_volume(save(tmp_path / "1.nii", patient(lps_affine()))) as volume:
        base = volume.stored
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        assert not isinstance(base, np.ndarray)  # a memory map holds the values


# Tables of ids


def table(tmp_path, text):
    path = tmp_path / "ids.yaml"
    path.write_text(text)
    return path


def test_a_table_names_ids_by_organ(tmp_path):
    path = table(tmp_path, "liver: 5\nleft kidney: 3\nbowel: [18, 19, 20]\n")
    assert read_mask_ids(path) == {5: 1, 3: 3, 18: 5, 19: 5, 20: 5}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("heart: 5", "unknown organ 'heart'"),
        ("liver: five", "whole numbers above 0, got 'five'"),
        ("liver: 0", "whole numbers above 0, got 0"),
        ("liver: true", "whole numbers above 0, got True"),
        ("liver: 1\nspleen: [2, 1]", "two organs have the id 1"),
        ("- 5", "must hold lines"),
        ("", "must hold lines"),
        ("liver: []", "names no id"),
        ("liver: [", "cannot be read as YAML"),
    ],
)
def test_a_mistake_in_a_table_is_one_line(tmp_path, text, reason):
    with pytest.raises(UserError, match=reason):
        read_mask_ids(table(tmp_path, text))


def test_a_missing_table_says_where_tables_are(tmp_path):
    with pytest.raises(UserError, match=r"no table .*there are some in .*masks"):
        read_mask_ids(tmp_path / "none.yaml")


def test_shipped_tables_agree_where_they_should(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # found from any working directory
    tables = {name: read_mask_ids(Path(f"configs/masks/{name}.yaml")) for name in ("rsna", "flare23")}
    total = read_mask_ids(Path("configs/masks/totalsegmentator.yaml"))
    assert tables["rsna"] == {label: label for label in ORGANS.values()}
    assert total == {5: 1, 1: 2, 3: 3, 2: 4, 18: 5, 19: 5, 20: 5}
    assert tables["flare23"] == {1: 1, 3: 2, 13: 3, 2: 4}
