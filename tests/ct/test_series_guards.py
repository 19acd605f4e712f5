"""Of several grids and places under one series UID, one of each is kept."""

import numpy as np
import pytest

from tests.helpers.dicom_files import read_volume, scan_series, write_series, write_slice
from tests.helpers.scans import remarks_of


def files(stems):
    return {f"{stem}.dcm" for stem in stems}


def write_places(folder, places_mm, orientations=((1, 0, 0, 0, 1, 0),)):
    for index, place in enumerate(places_mm):
        orientation = orientations[index % len(orientations)]
        where = {"position_mm": place, "orientation": orientation, "instance_number": index + 1}
        write_slice(folder / f"{index + 1}.dcm", np.zeros((8, 8)), **where)
    return scan_series(folder)


def test_keep_main_grid_tolerates_jitter_of_the_orientation(tmp_path):
    """Twelve slices 0.05 degrees to either side of where two decimals change, and five of another tilt."""
    angles = np.arcsin(0.005) + np.deg2rad([-0.05, 0.05] * 6 + [3] * 5)
    orientations = [(1, 0, 0, 0, np.cos(angle), np.sin(angle)) for angle in angles]
    series = write_places(tmp_path, [(0, 0, 5 * k) for k in range(17)], orientations)
    assert len(series.z_mm) == 12
    assert {item.source for item in series.rejected} == files(range(13, 18))
    assert all("another size, spacing, orientation" in item.reason for item in series.rejected)


def test_keep_main_grid_tolerates_rounded_spacings(tmp_path):
    """Of 24 slices half have a spacing rounded to four decimals; five more are 1 % larger."""
    for index in range(29):
        spacing = 0.9765625 * 1.01 if index >= 24 else (0.9765625, 0.9765)[index % 2]
        tags = {"pixel_mm": [spacing] * 2, "position_mm": (0, 0, 5 * index), "instance_number": index + 1}
        write_slice(tmp_path / f"{index}.dcm", np.zeros((8, 8)), **tags)
    series = scan_series(tmp_path)
    assert (len(series.z_mm), series.remarks) == (24, ())
    assert {item.source for item in series.rejected} == files(range(24, 29))
    assert set(np.diff(series.z_mm)) == {-5}


@pytest.mark.parametrize(
    ("moved", "drift"),
    [(range(13, 21), 0), (range(13, 21), 0.3), (range(1, 21, 3), 0)],  # not jumps within a drift
    ids=["at the end", "at the end of a drift", "every third"],
)
def test_keep_main_centre_rejects_slices_moved_across_the_patient(tmp_path, moved, drift):
    series = write_places(tmp_path, [(-200 + 60 * (k in moved), drift * 5 * k, 5 * k) for k in range(1, 21)])
    assert {item.source for item in series.rejected} == files(moved)
    assert {item.reason for item in series.rejected} == {"another place across the patient than the series"}


@pytest.mark.parametrize("stacked", ["along the table", "in a line", "with a little jitter"])
def test_keep_main_centre_keeps_slices_that_drift_or_jitter(tmp_path, stacked):
    tilt = np.deg2rad(25)
    rows_axis = (0, np.cos(tilt), -np.sin(tilt))
    jitter = np.random.default_rng(0).uniform(-2, 2, (20, 2))
    places, orientation = {
        "along the table": ([(-200, -200, 5 * k) for k in range(20)], (1, 0, 0, *rows_axis)),
        "in a line": ([(-200 + k, 3 * k, 5 * k) for k in range(20)], (1, 0, 0, 0, 1, 0)),
        "with a little jitter": ([(x, y, 5 * k) for k, (x, y) in enumerate(jitter)], (1, 0, 0, 0, 1, 0)),
    }[stacked]
    series = write_places(tmp_path, places, [orientation])
    assert len(series.z_mm) == 20
    assert series.rejected == ()


@pytest.mark.parametrize("inverted", [True, False])
@pytest.mark.parametrize(
    "encoding",
    [{}, {"bits_stored": 12}, {"bits_stored": 12, "signed": False, "intercept": -1024}],
    ids=["16 bits signed", "12 bits signed", "12 bits unsigned"],
)
def test_with_true_polarity_of_monochrome1(tmp_path, inverted, encoding):
    plain = scan_series(write_series(tmp_path / "plain", **encoding))
    folder = write_series(tmp_path / "s", photometric="MONOCHROME1", inverted=inverted, **encoding)
    np.testing.assert_array_equal(read_volume(scan_series(folder)), read_volume(plain))


def test_keep_main_grid_doubts_a_scan_that_loses_a_part_of_the_patient(tmp_path):
    """Twelve slices, and eight with larger pixels: at the same heights, or below."""
    for place, lowest in (("same", 0), ("below", -40)):
        for index in range(20):
            pixel_mm, z_mm = ((4, 4), 5 * index) if index < 12 else ((5, 5), lowest + 5 * (index - 12))
            tags = {"pixel_mm": pixel_mm, "position_mm": (0, 0, z_mm), "instance_number": index + 1}
            write_slice(tmp_path / place / f"{index}.dcm", np.zeros((8, 8)), **tags)
    assert scan_series(tmp_path / "same").remarks == ()
    text = (
        "8 slices of another size, spacing, orientation or kind of pixels left out, 7 of them beyond the scan"
    )
    assert remarks_of(scan_series(tmp_path / "below")) == [(text, True)]
