"""Of several grids, places or acquisitions under one series UID, one of each is kept."""

import numpy as np
import pytest

from tests.helpers.dicom_files import (
    SPACING_Z_MM,
    read_volume,
    scan_series,
    set_tags,
    write_series,
    write_slice,
)

FIRST, SECOND = range(1, 13), range(101, 113)
"""Stems of the files that `two_passes` writes."""


def two_passes(folder, shift_mm):
    write_series(folder)
    return write_series(folder, first=SECOND[0], shift_mm=(0, 0, shift_mm), add_hu=50)


def kept(series):
    return {header.file.name for header in series.headers}


def files(stems):
    return {f"{stem}.dcm" for stem in stems}


PHASES = {
    "acquisition numbers": ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
    "image types": (
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "B"]},
    ),
    "acquisition times": ({"AcquisitionTime": "101500"}, {"AcquisitionTime": "101630.5"}),
}
SHIFTS = pytest.mark.parametrize("shift_mm", [0, SPACING_Z_MM / 2, SPACING_Z_MM / 3])


@SHIFTS
@pytest.mark.parametrize("kind", PHASES)
def test_keep_one_acquisition_of_two_phases(tmp_path, kind, shift_mm):
    """The two take turns in InstanceNumber as well."""
    folder = two_passes(tmp_path, shift_mm)
    for phase, (stems, tags) in enumerate(zip((FIRST, SECOND), PHASES[kind], strict=True), start=1):
        for index, stem in enumerate(stems):
            set_tags(folder / f"{stem}.dcm", InstanceNumber=2 * index + phase, **tags)
    series = scan_series(folder)
    assert kept(series) == files(FIRST)
    assert len(series.rejected) == 12
    assert {item.reason for item in series.rejected} == {"another acquisition of the same region"}


@SHIFTS
def test_keep_one_acquisition_by_instance_numbers_that_restart(tmp_path, shift_mm):
    folder = two_passes(tmp_path, shift_mm)
    (folder / "12.dcm").unlink()
    assert kept(scan_series(folder)) == files(SECOND)


@SHIFTS
@pytest.mark.parametrize("keyword", ["ContentTime", "AcquisitionTime"])
def test_keep_one_acquisition_by_time_of_each_slice(tmp_path, keyword, shift_mm):
    folder = two_passes(tmp_path, shift_mm)
    for stems, minute in ((FIRST, 15), (SECOND, 17)):
        for index, stem in enumerate(stems):
            time = {keyword: f"10{minute}{index:02d}.5"}
            set_tags(folder / f"{stem}.dcm", InstanceNumber=1 + index, **time)
    assert kept(scan_series(folder)) == files(FIRST)


def test_keep_one_acquisition_keeps_a_repeated_instance_number(tmp_path):
    folder = write_series(tmp_path)
    for stem in range(1, 13):
        set_tags(
            folder / f"{stem}.dcm", InstanceNumber=5 if stem == 6 else stem, ContentTime=f"1015{stem:02d}"
        )
    assert len(scan_series(folder).z_mm) == 12


def test_keep_one_acquisition_joins_scans_that_follow_each_other(tmp_path):
    """Two passes that share two slices where they meet, and one number for each slice of a third."""
    folder = write_series(tmp_path / "s", n_slices=12, AcquisitionNumber=1)
    write_series(folder, n_slices=12, first=101, shift_mm=(0, 0, 10 * SPACING_Z_MM), AcquisitionNumber=2)
    for index in range(5):
        height = (20 + index) * SPACING_Z_MM - (0 if index else 4)
        step = {"shift_mm": (0, 0, height), "first": 201 + index, "AcquisitionNumber": 3 + index}
        write_series(folder, n_slices=1, **step)
    series = scan_series(folder)
    assert len(series.z_mm) == 12 + 10 + 5
    assert (np.diff(series.z_mm) < -1).all()


def test_keep_one_acquisition_ignores_types_and_times_within_one_pass(tmp_path):
    folder = write_series(tmp_path, n_slices=24)
    for stem in range(1, 25):
        set_tags(
            folder / f"{stem}.dcm",
            ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "AB"[stem * stem % 7 % 2]],
            AcquisitionTime=f"1015{stem:02d}",
            InstanceNumber=stem * 7 % 25,
        )
    assert len(scan_series(folder).z_mm) == 24


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
