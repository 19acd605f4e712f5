"""Slices are cut and resized to one square, whatever of it lies outside the image."""

import numpy as np
import pytest

from src.ct.windows import AIR_HU
from src.prepare.grey_slices import RESIZED_TOGETHER, Crop


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
