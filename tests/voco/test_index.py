"""An index of very many series is a few bytes per series, opens at once and finds a series at once."""

import pickle
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.core.errors import UserError
from src.voco.index import open_index
from src.voco.options import VocoOptions
from tests.helpers.doubtful_sets import mark_doubtful
from tests.helpers.voco_files import draw_noise, write_prepared

ROWS = 40_000


@pytest.fixture(scope="module")
def large_set(tmp_path_factory):
    folder = write_prepared(tmp_path_factory.mktemp("large") / "set", draw_noise, series=1, slices=3)
    numbers = np.arange(ROWS)
    table = pd.DataFrame({"patient_id": numbers // 2, "series_id": 1_000_000 + numbers, "slices": 300})
    table["patient_id"] = "Köln_" + table["patient_id"].astype(str)
    table = table.assign(spacing_z_mm=1.0, pixel_mm=1.5, orientation="LP", status="ok", reason="")
    table.loc[::10, "status"] = "skipped"
    table.to_csv(folder / "series.csv", index=False)
    return folder, table


def options_of(*folders, **changes):
    return VocoOptions(data=tuple(map(str, folders)), output=Path("unused"), **changes)


def test_index_table_lists_usable_series_in_order(large_set):
    folder, table = large_set
    index = open_index(options_of(folder))
    expected = table[table["status"] == "ok"].astype({"series_id": str}).reset_index(drop=True)
    assert len(index) == index.entries == ROWS * 9 // 10
    pd.testing.assert_frame_equal(index.table().drop(columns="set"), expected[["patient_id", "series_id"]])
    series = index.series(7)
    assert (series.folder.parent.name, series.folder.name) == ("Köln_4", "1000008")
    assert series.n_slices == 300 and np.isnan(series.pixel_mm)
    assert open_index(options_of(folder, extent="box")).series(7).pixel_mm == 1.5


def test_index_rows_of_several_sets_are_consecutive(large_set, tmp_path):
    small = write_prepared(tmp_path / "set", draw_noise, series=2, slices=3)
    folder, _ = large_set
    index = open_index(options_of(small, folder, small, repeat=(2, 1, 3)))
    first = 2 + ROWS * 9 // 10
    assert len(index) == first + 2 and index.entries == 4 + ROWS * 9 // 10 + 6
    for row, series_id in ((0, "100"), (1, "101"), (2, "1000001"), (first, "100"), (first + 1, "101")):
        assert index.series(row).folder.name == series_id
        assert index.table().series_id[row] == series_id
    assert [index.row_of(entry) for entry in (0, 1, 2, 3, 4)] == [0, 1, 0, 1, 2]
    assert [index.row_of(index.entries - left) for left in (6, 5, 4, 1)] == [
        first,
        first + 1,
        first,
        first + 1,
    ]


def test_index_takes_few_bytes_per_series(large_set):
    tracemalloc.start()
    try:
        index = open_index(options_of(large_set[0]))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 60 * len(index)
    assert len(pickle.dumps(index)) < 50 * len(index)  # what a spawned worker is sent
    assert not any(array.dtype.hasobject for array in vars(index).values() if isinstance(array, np.ndarray))


def test_index_lookup_does_not_depend_on_its_size(large_set):
    index = open_index(options_of(large_set[0], large_set[0], repeat=(5, 2)))
    started = time.perf_counter()
    for entry in range(0, index.entries, index.entries // 200):
        index.series(index.row_of(entry))
    assert (time.perf_counter() - started) / 200 < 1e-3


def test_index_leaves_doubtful_series_out_unless_kept(tmp_path):
    folder = write_prepared(tmp_path / "set", draw_noise, series=4, slices=3)
    other = write_prepared(tmp_path / "other", draw_noise, series=2, slices=3)
    mark_doubtful(folder, ["100", "102"])
    index = open_index(options_of(folder, other, repeat=(2, 1)))
    assert index.table()["series_id"].tolist() == ["101", "103", "100", "101"]
    assert index.entries == 6 and index.doubtful == 2
    assert [index.series(row).folder.name for row in range(4)] == ["101", "103", "100", "101"]
    kept = open_index(options_of(folder, other, doubtful="keep"))
    assert len(kept) == 6 and kept.doubtful == 2
    mark_doubtful(other, ["100", "101"])
    with pytest.raises(UserError, match=r"all 2 series of .*other are doubtful.*--doubtful keep"):
        open_index(options_of(folder, other))
