"""One slice at each height: the one that fits its neighbours."""

import pytest

from src.ct.series import SeriesError
from tests.helpers.dicom_files import scan_series
from tests.helpers.scans import numbers_of, remarks_of, write_scan


@pytest.mark.parametrize("stray", [2, 60])
def test_order_head_to_feet_keeps_the_number_that_fits_its_neighbours(tmp_path, stray):
    """Three slices of another part of the scan lie at heights 10, 25 and 50 once more."""
    write_scan(tmp_path, range(0, 200, 5), range(11, 51))
    write_scan(tmp_path, [10, 25, 50], range(stray, stray + 3))
    series = scan_series(tmp_path)
    assert numbers_of(series) == list(range(50, 10, -1))
    assert series.remarks == () and len(series.rejected) == 3


@pytest.mark.parametrize("keyword", ["AcquisitionTime", "ContentTime"])
def test_order_head_to_feet_keeps_the_time_that_fits_its_neighbours(tmp_path, keyword):
    """Slices 3 and 4 were scanned again an hour before and after."""
    write_scan(tmp_path, [15, 20], [4, 5], **{keyword: ["091504.5", "111505"]})
    write_scan(tmp_path, range(0, 60, 5), **{keyword: [f"1015{second:02d}.25" for second in range(12)]})
    series = scan_series(tmp_path)
    assert {item.source for item in series.rejected} == {"000.dcm", "001.dcm"}


@pytest.mark.parametrize("n_slices", [2, 24])
def test_order_head_to_feet_refuses_slices_at_one_height(tmp_path, n_slices):
    write_scan(tmp_path, [-60.0] * n_slices, SliceLocation=[float(k) for k in range(n_slices)])
    with pytest.raises(SeriesError, match=f"^all {n_slices} slices lie at one height$"):
        scan_series(tmp_path)


def test_order_head_to_feet_of_a_single_slice_and_its_copy(tmp_path):
    write_scan(tmp_path, [5.0, 5.0], [7, 7])
    series = scan_series(tmp_path)
    assert series.z_mm.tolist() == [5] and series.remarks == ()


@pytest.mark.parametrize(("n_shared", "doubtful"), [(2, False), (6, True), (20, True)])
def test_order_head_to_feet_doubts_many_slices_at_one_height(tmp_path, n_shared, doubtful):
    """As if a program had written the position of the first slice into some others."""
    write_scan(tmp_path, [0.0 if k < n_shared else 5.0 * k for k in range(24)])
    series = scan_series(tmp_path)
    text = f"{n_shared} of 24 slices share their height with another slice"
    assert remarks_of(series) == ([(text, True)] if doubtful else [])
