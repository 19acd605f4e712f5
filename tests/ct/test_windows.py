"""Grey levels follow the formula exactly, by table or not, and window names are checked."""

from itertools import permutations
from typing import get_args

import numpy as np
import pytest

from src.core.errors import UserError
from src.ct.windows import WINDOWS, apply_windows, get_windows
from src.prepare.options import WindowName

ORDERS = [names for count in (1, 2, 3) for names in permutations(WINDOWS, count)]


def test_apply_windows_equals_the_formula_for_every_int16():
    hu = np.arange(-32768, 32768).astype(np.int16).reshape(256, 256)
    windows = get_windows(("soft", "organ", "wide"))
    grey = apply_windows(hu, windows)
    assert grey.shape == (256, 256, 3)
    assert grey.dtype == np.uint8
    for channel, window in enumerate(windows):
        c, w = window.centre_hu, window.width_hu
        expected = [round(255 * min(max((int(v) - c + w / 2) / w, 0), 1)) for v in hu.ravel()]
        np.testing.assert_array_equal(grey[..., channel].ravel(), expected)


@pytest.mark.parametrize("names", ORDERS, ids="-".join)
def test_apply_windows_gives_one_channel_per_window(names):
    hu = np.arange(-1100, 1300).astype(np.int16).reshape(40, 60)
    windows = get_windows(names)
    for image in (hu, hu.T[::-1, ::2]):
        grey = apply_windows(image, windows)
        assert grey.shape == (*image.shape, len(names))
        assert grey.flags.c_contiguous
        for channel, window in enumerate(windows):
            np.testing.assert_array_equal(grey[..., channel], window.grey(image))


def test_apply_windows_of_fractions():
    hu = np.linspace(-1100, 1000, 4096).reshape(64, 64)
    soft = (WINDOWS["soft"],)
    np.testing.assert_array_equal(
        apply_windows(hu.astype(np.float32), soft)[..., 0],
        np.round(255 * np.clip((hu.astype(np.float32).astype(np.float64) + 150) / 400, 0, 1)),
    )
    whole = np.arange(-200, 312).reshape(16, 32)
    np.testing.assert_array_equal(
        apply_windows(whole.astype(np.float32), soft), apply_windows(whole.astype(np.int16), soft)
    )


def test_get_windows_refuses_unknown_names():
    with pytest.raises(UserError, match="unknown window 'bone'; there are soft, organ, wide"):
        get_windows(("soft", "bone"))


def test_prepare_options_know_every_window():
    assert get_args(WindowName) == tuple(WINDOWS)
