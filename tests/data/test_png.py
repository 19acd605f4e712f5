"""What is written as PNG is read back, channel by channel, by this kit and by other readers."""

import cv2
import numpy as np
from PIL import Image

from src.ct.windows import apply_windows, get_windows
from src.data.png import read_png, write_png


def test_write_png_puts_window_k_in_channel_k(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png").convert("RGB")), image)
    np.testing.assert_array_equal(read_png(tmp_path / "a.png"), image)


def test_write_png_of_one_window_is_grey_and_of_two_has_no_blue(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 2), dtype=np.uint8)
    write_png(tmp_path / "grey.png", image[..., :1])
    write_png(tmp_path / "two.png", image)
    assert Image.open(tmp_path / "grey.png").mode == "L"
    np.testing.assert_array_equal(read_png(tmp_path / "grey.png"), image[..., 0])
    np.testing.assert_array_equal(read_png(tmp_path / "two.png")[..., :2], image)
    assert not read_png(tmp_path / "two.png")[..., 2].any()


def test_write_png_of_three_windows_takes_little_more_than_twice_one(tmp_path):
    noise = np.random.default_rng(0).normal(0, 1, (256, 256))
    hu = (60 + 13 * cv2.GaussianBlur(noise, (0, 0), 1.0) / 0.28).astype(np.int16)
    row, col = np.ogrid[-128:128, -128:128]
    hu[row**2 + col**2 > 120**2] = -1000  # air around a round body
    sizes = []
    for names in (("soft",), ("soft", "organ", "wide")):
        write_png(tmp_path / "a.png", apply_windows(hu, get_windows(names)))
        sizes.append((tmp_path / "a.png").stat().st_size)
    assert sizes[1] < 2.4 * sizes[0]
