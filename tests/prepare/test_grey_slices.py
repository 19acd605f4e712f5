"""One square around the body; slices are cut to it and resized, with air outside of the image."""

import numpy as np
import pytest

from src.ct.geometry import Plane
from src.ct.windows import AIR_HU
from src.prepare.grey_slices import RESIZED_TOGETHER, Crop, body_crop, open_series, spacing_z_mm
from tests.helpers.dicom_files import PIXEL_MM, SPACING_Z_MM, write_series
from tests.helpers.prepare_runs import prepare, source_of


@pytest.mark.parametrize(("left", "top"), [(-2, 0), (3, 0), (0, -1), (0, 2), (-3, 1)])
def test_resize_fills_with_air_outside_the_image(left, top):
    hu = np.arange(48, dtype=np.int16).reshape(6, 8)
    cut = Crop(left=left, top=top, width=8, height=8).resize(hu, 8)
    expected = np.full((8, 8), AIR_HU)
    for row, col in np.ndindex(8, 8):
        if 0 <= top + row < 6 and 0 <= left + col < 8:
            expected[row, col] = hu[top + row, left + col]
    np.testing.assert_array_equal(cut, expected)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("width", [40, 64, 97, 128, 150])
@pytest.mark.parametrize("count", range(RESIZED_TOGETHER + 1))
def test_resize_all_equals_resize(dtype, width, count):
    rng = np.random.default_rng(width)
    slices = [rng.integers(-1024, 3000, (120, 130)).astype(dtype) for _ in range(count)]
    crop = Crop(left=-7, top=3, width=width, height=width + 5)
    together = crop.resize_all(slices, 64)
    assert len(together) == count
    for hu, resized in zip(slices, together, strict=True):
        np.testing.assert_array_equal(resized, crop.resize(hu, 64))


def test_find_body_gives_a_square_that_holds_the_body(tmp_path):
    folder = write_series(tmp_path / "s", shift_mm=(20, 0, 0))
    outcome, images = prepare(folder, tmp_path / "out")
    row = outcome["row"]
    assert 200 <= row["crop_width"] * PIXEL_MM <= 200 + 2 * 12 + 2 * PIXEL_MM  # the body is 200 mm wide
    assert row["crop_width"] == row["crop_height"]
    assert row["pixel_mm"] == pytest.approx(row["crop_width"] * PIXEL_MM / 48)
    body = (images[..., 0] > 0).any(axis=(0, 1))  # columns that show anything
    assert abs(np.flatnonzero(body).mean() - 23.5) < 1  # centred, although the field of view is not


def test_body_crop_excludes_the_table():
    hu = np.full((100, 60), -1000, dtype=np.int16)
    hu[20:60, 15:45] = 40  # body: 40 x 2 mm high, 30 x 4 mm wide
    hu[75:79, 5:55] = 300  # table: 8 mm thick and wider than the body
    crop = body_crop([hu], (2.0, 4.0), hu.shape)
    assert crop.width * 4.0 == pytest.approx(crop.height * 2.0, abs=4)
    assert crop.width * 4.0 == pytest.approx(120 + 12, abs=12)
    assert crop.top + crop.height / 2 == pytest.approx(40, abs=3)


def test_plane_of_a_crop():
    source = Plane(np.zeros(3), row_step=np.array([0, 2.0, 0]), col_step=np.array([1.0, 0, 0]))
    plane = Crop(left=-2, top=4, width=8, height=8).plane(source, size=2)  # 4 x 4 source pixels each
    np.testing.assert_allclose(plane.origin, [-2 + 1.5, 2 * (4 + 1.5), 0])
    np.testing.assert_allclose([plane.col_step[0], plane.row_step[1]], [4, 8])


def test_spacing_z_mm(tmp_path):
    for n_slices, expected in ((1, np.nan), (4, SPACING_Z_MM)):
        folder = write_series(tmp_path / str(n_slices), n_slices=n_slices)
        with open_series(source_of(folder)) as series:
            np.testing.assert_allclose(spacing_z_mm(series), expected)
