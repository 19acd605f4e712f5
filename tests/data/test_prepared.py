"""A prepared data set is opened, its channels and positions found, and a damaged one refused."""

import numpy as np
import pytest

from src.core.errors import UserError
from src.data.prepared import PreparedDataset, image_folder
from tests.helpers.voco_files import draw_noise, write_prepared, write_slice_table


def test_open_refuses_what_is_not_a_prepared_data_set(tmp_path):
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
