"""What is written as PNG is read back, channel by channel, by this kit and by other readers."""

from contextlib import suppress

import cv2
import numpy as np
import pytest
from PIL import Image

from src.core.errors import UserError
from src.ct.windows import apply_windows, get_windows
from src.data.png import encode_png, read_png, write_png


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


@pytest.mark.parametrize("windows", [1, 2, 3])
@pytest.mark.parametrize("missing", ["cv2.imdecode", "deflate"])
def test_libdeflate_and_opencv_each_read_what_write_png_writes(tmp_path, monkeypatch, windows, missing):
    levels = np.random.default_rng(0).integers(0, 256, (70, 131, windows), dtype=np.uint8)
    write_png(tmp_path / "a.png", levels)
    monkeypatch.setattr(f"src.data.png.{missing}", None)
    read = read_png(tmp_path / "a.png").reshape(70, 131, -1)
    np.testing.assert_array_equal(read[..., :windows], levels)


@pytest.mark.parametrize("options", [{}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_read_png_reads_what_other_programs_wrote(tmp_path, mode, options):
    image = Image.fromarray(np.arange(9 * 7 * 3, dtype=np.uint8).reshape(9, 7, 3)).quantize(16).convert(mode)
    image.save(tmp_path / "a.png", **options)
    expected = np.asarray(image.convert("L" if mode == "L" else "RGB"))
    np.testing.assert_array_equal(read_png(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("windows", [1, 3])
def test_read_png_of_a_damaged_file_is_an_error_or_the_same_image(tmp_path, windows):
    levels = np.random.default_rng(0).integers(0, 256, (6, 5, windows), dtype=np.uint8)
    content = encode_png(levels).tobytes()
    damaged = [content[:end] for end in range(len(content) - 12)]  # in front of IEND, which has no content
    for at in range(len(content)):
        damaged.append(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
    path = tmp_path / "a.png"
    for each in damaged:
        path.write_bytes(each)
        with suppress(UserError):
            np.testing.assert_array_equal(read_png(path), levels.squeeze(2) if windows == 1 else levels)
