"""Of several grids, places or acquisitions under one series UID, one of each is kept."""

import numpy as np
import pydicom
import pytest

from src.ct import dicom_series
from src.ct.storage import LocalFolder
from tests.helpers.dicom_files import SPACING_Z_MM, write_series, write_slice


def scan_series(folder):
    return dicom_series.scan_series(LocalFolder(folder).list())


PHASES = {
    "acquisition numbers": ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
    "image types": (
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "B"]},
    ),
    "acquisition times": ({"AcquisitionTime": "101500"}, {"AcquisitionTime": "101630.5"}),
}


@pytest.mark.parametrize("kind", PHASES)
@pytest.mark.parametrize("shift_mm", [0, SPACING_Z_MM / 2, SPACING_Z_MM / 3], ids=["same", "half", "third"])
def test_keep_one_acquisition_of_two_phases(tmp_path, kind, shift_mm):
    first, second = PHASES[kind]
    folder = write_series(tmp_path / "s", **first)
    write_series(folder, first=101, shift_mm=(0, 0, shift_mm), add_hu=50, **second)
    for index in range(12):  # the two take turns in InstanceNumber as well
        for stem, number in ((1 + index, 2 * index + 1), (101 + index, 2 * index + 2)):
            dataset = pydicom.dcmread(folder / f"{stem}.dcm")
            dataset.InstanceNumber = number
            dataset.save_as(folder / f"{stem}.dcm")
    series = scan_series(folder)
    assert {header.file.name for header in series.headers} == {f"{stem}.dcm" for stem in range(1, 13)}
    assert len(series.rejected) == 12
    assert {item.reason for item in series.rejected} == {"another acquisition of the same region"}


@pytest.mark.parametrize("shift_mm", [0, SPACING_Z_MM / 2])
def test_keep_one_acquisition_by_instance_numbers_that_restart(tmp_path, shift_mm):
    folder = write_series(tmp_path / "s", n_slices=11)
    write_series(folder, first=101, n_slices=12, shift_mm=(0, 0, shift_mm), add_hu=50)
    series = scan_series(folder)
    assert {header.file.name for header in series.headers} == {f"{stem}.dcm" for stem in range(101, 113)}


@pytest.mark.parametrize("keyword", ["ContentTime", "AcquisitionTime"])
@pytest.mark.parametrize("shift_mm", [0, SPACING_Z_MM / 2], ids=["same", "half"])
def test_keep_one_acquisition_by_time(tmp_path, keyword, shift_mm):
    """Each slice has a time of its own, as files often do."""
    folder = write_series(tmp_path / "s")
    write_series(folder, first=101, shift_mm=(0, 0, shift_mm), add_hu=50)
    for index in range(12):
        for stem, minute in ((1 + index, 15), (101 + index, 17)):
            dataset = pydicom.dcmread(folder / f"{stem}.dcm")
            dataset.InstanceNumber = 1 + index
            setattr(dataset, keyword, f"10{minute}{index:02d}.5")
            dataset.save_as(folder / f"{stem}.dcm")
    series = scan_series(folder)
    assert {header.file.name for header in series.headers} == {f"{stem}.dcm" for stem in range(1, 13)}


def test_keep_one_acquisition_keeps_a_repeated_instance_number(tmp_path):
    folder = write_series(tmp_path / "s")
    for stem in range(1, 13):
        dataset = pydicom.dcmread(folder / f"{stem}.dcm")
        dataset.InstanceNumber = 5 if stem == 6 else stem
        dataset.ContentTime = f"1015{stem:02d}"
        dataset.save_as(folder / f"{stem}.dcm")
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
    folder = write_series(tmp_path / "s", n_slices=24)
    for stem in range(1, 25):
        dataset = pydicom.dcmread(folder / f"{stem}.dcm")
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "AB"[stem * stem % 7 % 2]]
        dataset.AcquisitionTime = f"1015{stem:02d}"
        dataset.InstanceNumber = stem * 7 % 25
        dataset.save_as(folder / f"{stem}.dcm")
    assert len(scan_series(folder).z_mm) == 24


def oriented_volume(series):
    return np.stack([series.read(index) for index in range(len(series.z_mm))])


def test_keep_main_grid_tolerates_jitter_of_the_orientation(tmp_path):
    """Twelve slices 0.05 degrees to either side of where two decimals change, and five of another tilt."""
    edge = np.arcsin(0.005)
    for stem in range(1, 18):
        angle = edge + np.deg2rad(0.05 * (-1) ** stem if stem <= 12 else 3)
        orientation = (1, 0, 0, 0, np.cos(angle), np.sin(angle))
        place = {"position_mm": (0, 0, 5 * stem), "instance_number": stem, "orientation": orientation}
        write_slice(tmp_path / f"{stem}.dcm", np.zeros((8, 8)), **place)
    series = scan_series(tmp_path)
    assert len(series.z_mm) == 12
    assert {item.source for item in series.rejected} == {f"{stem}.dcm" for stem in range(13, 18)}
    assert all("another size, spacing, orientation" in item.reason for item in series.rejected)


def write_places(folder, places_mm, **tags):
    for stem, place in enumerate(places_mm, start=1):
        write_slice(folder / f"{stem}.dcm", np.zeros((8, 8)), position_mm=place, instance_number=stem, **tags)
    return folder


@pytest.mark.parametrize("drift", [0, 0.3])
@pytest.mark.parametrize("moved", [range(13, 21), range(1, 21, 3)], ids=["at the end", "every third"])
def test_keep_main_centre_rejects_slices_moved_across_the_patient(tmp_path, drift, moved):
    if drift and moved == range(1, 21, 3):
        pytest.skip("a drift among slices that jump to and fro cannot be separated from the jumps")
    places = [(-200 + 60 * (k in moved), drift * 5 * k, 5 * k) for k in range(1, 21)]
    series = scan_series(write_places(tmp_path, places))
    assert {item.source for item in series.rejected} == {f"{k}.dcm" for k in moved}
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
    series = scan_series(write_places(tmp_path, places, orientation=orientation))
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
    np.testing.assert_array_equal(oriented_volume(scan_series(folder)), oriented_volume(plain))
