"""What is written as PNG is read back, channel for channel, by us and by others."""

import cv2
import numpy as np
import pytest
from PIL import Image

from src.core.errors import UserError
from src.core.files import whole_folder
from src.ct.windows import apply_windows, get_windows
from src.data.png import read_png, write_png
from src.data.prepared import PreparedDataset, image_folder
from src.data.selection import even_indices
from tests.helpers.voco_files import draw_noise, write_prepared, write_slice_table


def test_channel_k_is_window_k_for_any_rgb_reader(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png").convert("RGB")), image)
    np.testing.assert_array_equal(read_png(tmp_path / "a.png"), image)


def test_one_window_is_grey_and_two_leave_blue_empty(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 2), dtype=np.uint8)
    write_png(tmp_path / "grey.png", image[..., :1])
    write_png(tmp_path / "two.png", image)
    assert Image.open(tmp_path / "grey.png").mode == "L"
    np.testing.assert_array_equal(read_png(tmp_path / "grey.png"), image[..., 0])
    np.testing.assert_array_equal(read_png(tmp_path / "two.png")[..., :2], image)
    assert not read_png(tmp_path / "two.png")[..., 2].any()


def test_three_windows_of_a_slice_cost_little_more_than_twice_one(tmp_path):
    noise = np.random.default_rng(0).normal(0, 1, (256, 256))
    hu = (60 + 13 * cv2.GaussianBlur(noise, (0, 0), 1.0) / 0.28).astype(np.int16)
    row, col = np.ogrid[-128:128, -128:128]
    hu[row**2 + col**2 > 120**2] = -1000  # air around a round body
    sizes = []
    for names in (("soft",), ("soft", "organ", "wide")):
        write_png(tmp_path / "a.png", apply_windows(hu, get_windows(names)))
        sizes.append((tmp_path / "a.png").stat().st_size)
    assert sizes[1] < 2.4 * sizes[0]


def test_even_indices_are_the_middles_of_equal_bins():
    assert even_indices(10, 5).tolist() == [1, 3, 5, 7, 9]
    assert even_indices(96, 1).tolist() == [48]
    assert even_indices(7, 7).tolist() == list(range(7))
    assert even_indices(2, 6).tolist() == [0, 0, 0, 1, 1, 1]
    for n, count in ((317, 48), (41, 48), (1727, 64)):
        expected = [int((i + 0.5) * n / count) for i in range(count)]
        assert even_indices(n, count).tolist() == expected


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "a" / "b") as partial:
        (partial / "x").write_text("half")
        raise RuntimeError
    assert list((tmp_path / "a").iterdir()) == []
    with whole_folder(tmp_path / "a" / "b") as partial:
        (partial / "x").write_text("whole")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "x").read_text() == "whole"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_what_is_not_a_prepared_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        PreparedDataset.open(tmp_path / "missing")
    with pytest.raises(UserError, match="not a prepared data set"):
        PreparedDataset.open(tmp_path)
    (tmp_path / "dataset.json").write_text('{"version": 1}')
    with pytest.raises(UserError, match="is damaged"):
        PreparedDataset.open(tmp_path)
    (tmp_path / "dataset.json").write_text('{"version": 1, "windows": [], "size": 8}')
    with pytest.raises(UserError, match="not completely prepared"):
        PreparedDataset.open(tmp_path)
    for content in ("", "patient_id,series_id\n1,2\n"):
        (tmp_path / "series.csv").write_text(content)
        with pytest.raises(UserError, match="is damaged"):
            PreparedDataset.open(tmp_path)


def test_channels_finds_windows_and_refuses_those_not_prepared(tmp_path):
    dataset = PreparedDataset.open(write_prepared(tmp_path / "set", draw_noise, series=1, slices=3))
    assert dataset.channels(("wide", "soft")) == (2, 0)
    with pytest.raises(UserError, match="no window bone; it has soft organ wide"):
        dataset.channels(("soft", "bone"))


def test_z_mm_reads_positions_and_refuses_a_table_of_other_slices(tmp_path):
    dataset = PreparedDataset.open(write_prepared(tmp_path / "set", draw_noise, series=1, slices=3))
    key = ("10", "100")
    images = image_folder(dataset.folder, *key)
    write_slice_table(images, np.array([3, 1, -4]))
    assert dataset.z_mm(*key).tolist() == [3.0, 1.0, -4.0]
    for positions in ([3, 1], [3, 1, 1], [3, np.nan, 1], [1, 2, 3]):
        write_slice_table(images, np.array(positions))
        with pytest.raises(UserError, match=r"slices.csv does not fit the 3 slices"):
            dataset.z_mm(*key)
    (images / "slices.csv").unlink()
    with pytest.raises(UserError, match=r"slices.csv is missing"):
        dataset.z_mm(*key)
