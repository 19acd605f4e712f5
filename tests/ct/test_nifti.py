"""NIfTI volumes as CT series: the affine decides where everything lies, and HU stay HU."""

import gzip
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from src.ct.nifti import nifti_stem, open_nifti, open_volume
from src.ct.series import Remark, SeriesError
from src.ct.storage import LocalFile
from src.ct.windows import AIR_HU, WINDOWS, Window
from tests.helpers.nifti_files import (
    RAS_FROM_LPS,
    SHAPE,
    STEP_MM,
    lps_affine,
    on_plane,
    patient,
    save,
    set_header,
)

SOFT = Window("soft", 50, 400)


def refusal(file, window=None):
    with pytest.raises(SeriesError) as caught, open_nifti(file, window):
        pass
    return str(caught.value)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_read_orients_any_voxel_axes(tmp_path, order):
    for number, signs in enumerate(product((1, -1), repeat=3)):
        affine = lps_affine(order, signs)
        file = save(tmp_path / f"{number}.nii", patient(affine, order), affine)
        with open_nifti(file) as series:
            assert series.shape == (SHAPE[1], SHAPE[0])
            assert series.pixel_mm == pytest.approx((STEP_MM[1], STEP_MM[0]))
            np.testing.assert_allclose(np.diff(series.z_mm), -STEP_MM[2])
            for index in range(len(series.z_mm)):
                plane = series.plane(index)
                assert plane.col_step[0] > 0 and plane.row_step[1] > 0
                assert plane.origin[2] == pytest.approx(series.z_mm[index])
                np.testing.assert_array_equal(series.read(index), on_plane(plane, series.shape))


@pytest.mark.parametrize("turn_degrees", [-30, 20])
def test_plane_of_tilted_slices(tmp_path, turn_degrees):
    affine = lps_affine((1, 2, 0), (1, -1, -1), turn_degrees)
    with open_nifti(save(tmp_path / "1.nii", patient(affine, (1, 2, 0)), affine)) as series:
        np.testing.assert_allclose(np.diff(series.z_mm), -STEP_MM[2], rtol=1e-5)
        for index in range(len(series.z_mm)):
            expected = on_plane(series.plane(index), series.shape)
            assert (series.read(index) == expected).mean() > 0.995  # float32 moves an edge or two


def test_open_nifti_refuses_oblique_slices_and_skewed_axes(tmp_path):
    oblique, skewed = lps_affine(turn_degrees=45), lps_affine()
    skewed[0, 1] = 2.0
    for affine, reason in ((oblique, "not axial"), (skewed, "right angles")):
        assert reason in refusal(save(tmp_path / "1.nii", patient(affine), affine))


def test_plane_of_a_gantry_tilt_written_as_shear(tmp_path):
    affine = lps_affine()
    affine[1, 2] = 3.0  # each slice is shifted to the back
    with open_nifti(save(tmp_path / "1.nii", patient(affine), affine)) as series:
        assert series.z_mm[0] - series.z_mm[1] == pytest.approx(STEP_MM[2])
        for index in range(len(series.z_mm)):
            np.testing.assert_array_equal(series.read(index), on_plane(series.plane(index), series.shape))


@pytest.mark.parametrize("dtype", [np.int16, ">i2", np.int32, np.int64, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_read_gives_the_same_hu_for_every_type(tmp_path, dtype, suffix, kind):
    file = save(tmp_path / f"1{suffix}", patient(lps_affine()), dtype=dtype, kind=kind)
    with open_nifti(file) as series:
        image = series.read(3)
        assert image.dtype == (np.int16 if np.dtype(dtype).kind == "i" else np.float32)
        np.testing.assert_array_equal(image, on_plane(series.plane(3), series.shape))


def test_read_applies_slope_and_intercept(tmp_path):
    hu = patient(lps_affine())
    save(tmp_path / "1.nii", hu + 1024, dtype=np.uint16)
    with open_nifti(set_header(tmp_path / "1.nii", scl_slope=1, scl_inter=-1024)) as series:
        assert series.read(3).dtype == np.int16
        np.testing.assert_array_equal(series.read(3), on_plane(series.plane(3), series.shape))
    save(tmp_path / "2.nii", np.rint(hu / 0.5), dtype=np.int16)
    with open_nifti(set_header(tmp_path / "2.nii", scl_slope=0.5, scl_inter=0.25)) as series:
        assert series.read(3).dtype == np.float32
        np.testing.assert_array_equal(series.read(3), on_plane(series.plane(3), series.shape) + 0.25)


def test_read_turns_nan_and_values_below_air_into_air(tmp_path):
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


def test_open_nifti_reads_the_unit_of_length(tmp_path):
    save(tmp_path / "1.nii", patient(lps_affine()))
    with open_nifti(set_header(tmp_path / "1.nii", xyzt_units=0)) as series:
        assert series.pixel_mm[1] == pytest.approx(STEP_MM[0])
    with open_nifti(set_header(tmp_path / "1.nii", xyzt_units=1)) as series:
        assert series.pixel_mm[1] == pytest.approx(STEP_MM[0] * 1000)


def test_source_and_instance_number_of_a_volume(tmp_path):
    with open_nifti(save(tmp_path / "ct.nii", patient(lps_affine()))) as series:
        assert (series.source(0), series.instance_number(0)) == (f"ct.nii slice {SHAPE[2]}", SHAPE[2])
        assert (series.source(SHAPE[2] - 1), series.instance_number(SHAPE[2] - 1)) == ("ct.nii slice 1", 1)


# Grey levels


def test_open_nifti_turns_grey_levels_into_hu_by_their_window(tmp_path):
    hu = patient(lps_affine())
    for number, dtype in enumerate((np.uint8, np.int16, np.float32)):
        with open_nifti(save(tmp_path / f"{number}.nii", SOFT.grey(hu), dtype=dtype), SOFT) as series:
            assert series.source_window == SOFT
            expected = np.clip(on_plane(series.plane(3), series.shape), -150, 250)
            assert series.read(3).dtype == np.float32
            assert np.abs(series.read(3) - expected).max() <= 400 / 255 / 2 + 1e-4


def test_source_window_of_8_bits_with_a_rescale(tmp_path):
    hu = np.clip(patient(lps_affine()), -150, 250)
    save(tmp_path / "1.nii", np.rint((hu + 150) * 255 / 400), dtype=np.uint8)
    for given in (None, SOFT):
        with open_nifti(set_header(tmp_path / "1.nii", scl_slope=400 / 255, scl_inter=-150), given) as series:
            shown = {name for name, window in WINDOWS.items() if series.source_window.contains(window)}
            assert shown == {"soft", "organ"}
            expected = np.clip(on_plane(series.plane(3), series.shape), -150, 250)
            assert np.abs(series.read(3) - expected).max() <= 400 / 255 / 2 + 1e-4
    with open_nifti(set_header(tmp_path / "1.nii", scl_slope=8, scl_inter=-1024)) as series:
        assert all(series.source_window.contains(window) for window in WINDOWS.values())


@pytest.mark.parametrize(
    ("values", "dtype", "window", "reason"),
    [
        (SOFT.grey, np.uint8, None, "8-bit volume: say with --source-window"),
        (SOFT.grey, np.float32, None, "8-bit volume: say with --source-window"),
        (lambda hu: SOFT.grey(hu) / 255, np.float32, None, "none above 1"),
        (lambda hu: SOFT.grey(hu) / 255, np.float32, SOFT, "none above 1"),
        (lambda hu: hu + 1024, np.int16, SOFT, "no value below 0"),
    ],
)
def test_open_nifti_refuses_values_that_are_neither_hu_nor_grey(tmp_path, values, dtype, window, reason):
    file = save(tmp_path / "1.nii", values(patient(lps_affine())), dtype=dtype)
    assert reason in refusal(file, window)


def test_open_nifti_ignores_the_window_for_hu(tmp_path):
    with open_nifti(save(tmp_path / "1.nii", patient(lps_affine())), SOFT) as series:
        assert series.source_window is None
        np.testing.assert_array_equal(series.read(3), on_plane(series.plane(3), series.shape))


# Refusals and damage


def test_open_nifti_refuses_other_kinds_of_volumes(tmp_path):
    hu = patient(lps_affine())
    assert refusal(save(tmp_path / "1.nii", np.stack([hu, hu], axis=-1))) == "volume has 4 dimensions, not 3"
    assert refusal(save(tmp_path / "2.nii", hu[..., 0])) == "volume has 2 dimensions, not 3"
    colour = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "colours" in refusal(save(tmp_path / "3.nii", colour, dtype=colour.dtype))
    assert "complex" in refusal(save(tmp_path / "4.nii", hu, dtype=np.complex64))


def test_open_nifti_refuses_a_missing_or_singular_affine(tmp_path):
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


def set_forms(path, sform, qform, **fields):
    """Write the affines, in LPS, of sform and qform; both with code 1, if `fields` do not say otherwise."""
    image = nib.load(path)
    image.set_sform(RAS_FROM_LPS @ sform, 1)
    image.set_qform(RAS_FROM_LPS @ qform, 1)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj).copy(), None, image.header), path)
    return set_header(path, **fields)


def test_open_nifti_takes_the_qform_where_the_sform_is_not_valid(tmp_path):
    affine = lps_affine((1, 0, 2), (1, -1, 1))
    hu = patient(affine, (1, 0, 2))
    path = save(tmp_path / "1.nii", hu, affine).path
    zero = {f"srow_{axis}": 0 for axis in "xyz"}
    identity = {f"srow_{axis}": row for axis, row in zip("xyz", np.eye(4)[:3], strict=True)}
    for fields in (zero, identity, {"srow_z": np.nan}):
        with open_nifti(set_forms(path, affine, affine, **fields)) as series:
            assert series.remarks == (Remark("sform is not valid: qform used"),)
            np.testing.assert_array_equal(series.read(3), on_plane(series.plane(3), series.shape))
    with open_nifti(set_forms(path, affine, affine, sform_code=0)) as series:  # as other programs read it
        assert series.remarks == ()
    assert "singular" in refusal(set_forms(path, affine, affine, **zero, quatern_b=2))
    assert "singular" in refusal(set_forms(path, affine, affine, **zero, qform_code=0))


def test_open_nifti_doubts_sides_that_sform_and_qform_contradict(tmp_path):
    affine, hu = lps_affine(), patient(lps_affine())
    path = save(tmp_path / "1.nii", hu).path
    for other in (lps_affine(signs=(-1, 1, 1)), lps_affine((1, 0, 2)), lps_affine(signs=(1, 1, -1))):
        with open_nifti(set_forms(path, affine, other)) as series:
            (remark,) = series.remarks
            assert remark.doubtful and "sform and qform contradict (LPS and " in remark.text
            np.testing.assert_array_equal(series.read(3), on_plane(series.plane(3), series.shape))


def test_open_nifti_accepts_a_qform_that_is_rounded_moved_tilted_or_a_remainder(tmp_path):
    affine = lps_affine(turn_degrees=3)
    path = save(tmp_path / "1.nii", patient(affine), affine).path
    moved = affine.copy()
    moved[:3, 3] += [50, -3, 900]
    remainder = {"quatern_b": 0, "quatern_c": 0, "quatern_d": 0, "pixdim": [1, 5, 4.5, 8, 1, 1, 1, 1]}
    remainder |= {f"qoffset_{axis}": 0 for axis in "xyz"}
    for file in (
        set_forms(path, affine, np.round(affine, 4)),
        set_forms(path, affine, moved),
        set_forms(path, affine, lps_affine(turn_degrees=30)),
        set_forms(path, affine, affine, quatern_b=2),  # no quaternion
        set_forms(path, affine, affine, **remainder),
    ):
        with open_nifti(file) as series:
            assert series.remarks == ()
            np.testing.assert_array_equal(series.read(3), on_plane(series.plane(3), series.shape))


def test_open_nifti_refuses_damaged_files(tmp_path):
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


# Files


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.nii", "a"), ("b/c.d.NII.GZ", "b/c.d"), ("x.gz", None), (".nii", None), ("b/.nii.gz", None)],
)
def test_nifti_stem(name, stem):
    assert nifti_stem(name) == stem


def test_open_volume_maps_the_file(tmp_path):
    with open_volume(save(tmp_path / "1.nii", patient(lps_affine()))) as volume:
        base = volume.stored
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        assert not isinstance(base, np.ndarray)  # a memory map holds the values
