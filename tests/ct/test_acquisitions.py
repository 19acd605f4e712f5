"""Several acquisitions under one series UID never alternate in a stack."""

import numpy as np
import pydicom
import pytest

from src.ct import dicom_series
from src.ct.storage import LocalFolder
from tests.helpers.dicom_files import SPACING_Z_MM, write_series


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


@pytest.mark.parametrize("told_apart_by", PHASES)
@pytest.mark.parametrize("shift_mm", [0, SPACING_Z_MM / 2, SPACING_Z_MM / 3], ids=["same", "half", "third"])
def test_keep_one_acquisition_of_two_phases(tmp_path, told_apart_by, shift_mm):
    first, second = PHASES[told_apart_by]
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
