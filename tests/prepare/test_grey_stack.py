"""Stacks in memory hold the same greys as prepared images."""

import numpy as np

from src.ct.windows import get_windows
from src.data.selection import even_indices
from src.prepare import grey_stack
from tests.helpers.dicom_files import SIDE, scan_series, write_series, write_slice
from tests.helpers.prepare_runs import NAMES, prepare, source_of

FLIPPED = {"along_cols": (0, -1, 0), "along_rows": (-1, 0, 0)}


def load_stack(folder, windows, size, count=None):
    choose = None if count is None else lambda z_mm: even_indices(len(z_mm), count)
    return grey_stack.load_stack(source_of(folder), get_windows(windows), size, choose)


def test_load_stack_equals_prepare_series(tmp_path):
    folder = write_series(tmp_path / "s", rle=True, bits_stored=12, dirty_bits=0x7000, **FLIPPED)
    outcome, written = prepare(folder, tmp_path / "out")
    stack = load_stack(folder, NAMES, 48)
    np.testing.assert_array_equal(stack.images, written)
    few = load_stack(folder, NAMES, 48, count=5)
    assert few.indices.tolist() == [1, 3, 6, 8, 10]
    np.testing.assert_array_equal(few.images, written[few.indices])
    assert few.table["instance_number"].tolist() == [11, 9, 6, 4, 2]
    assert stack.pixel_mm == few.pixel_mm == outcome["row"]["pixel_mm"]
    assert stack.table["instance_number"].tolist() == list(range(12, 0, -1))


def test_prepare_series_reports_slices_that_cannot_be_decoded(tmp_path):
    folder = write_series(tmp_path / "s", n_slices=6, rle=True)
    broken = folder / "3.dcm"
    broken.write_bytes(broken.read_bytes()[:1200])
    outcome, images = prepare(folder, tmp_path / "out")
    assert len(images) == outcome["row"]["slices"] == 5
    assert [item["source"] for item in outcome["rejected"]] == ["3.dcm"]
    few = load_stack(folder, NAMES, 48, count=6)
    assert few.indices.tolist() == list(range(6))
    assert "3.dcm" not in few.table["source"].tolist()
    every = load_stack(folder, NAMES, 48)
    np.testing.assert_array_equal(every.images, images)
    assert every.table["z_mm"].tolist() == every.z_mm.tolist() and len(every.z_mm) == 5


def test_load_stack_keeps_a_partly_black_slice(tmp_path):
    folder = write_series(tmp_path / "s", n_slices=4)
    hu = np.full((SIDE, SIDE), -1000)
    hu[20:40, 20:44] = 40
    hu[:, :30] = -1024
    place = scan_series(folder).plane(0).origin + np.array([0, 0, 5])
    write_slice(folder / "5.dcm", hu, position_mm=place)
    assert len(load_stack(folder, NAMES, 48).images) == 5
