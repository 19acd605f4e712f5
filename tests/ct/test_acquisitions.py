"""Of several acquisitions of one region one is kept; passes along the patient are joined."""

import numpy as np
import pytest

from tests.helpers.dicom_files import SPACING_Z_MM, scan_series, set_tags, write_series
from tests.helpers.scans import numbers_of, remarks_of, write_scan

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


CHEST, ABDOMEN = range(100, -25, -5), range(0, -100, -5)
"""Heights in mm of 25 and 20 slices, 5 of them shared."""

REGIONS = {
    "acquisition numbers": ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
    "acquisition times": PHASES["acquisition times"],
    "instance numbers": ({}, {}),
}


def write_regions(folder, chest, abdomen, kind, first=None):
    """A chest, and an abdomen numbered from `first` on, else after the chest."""
    first = len(chest) + 1 if first is None else first
    write_scan(folder, chest, **REGIONS[kind][0])
    return write_scan(folder, abdomen, range(first, first + len(abdomen)), **REGIONS[kind][1])


@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("shared", [5, 10, 15])
def test_keep_one_acquisition_joins_scans_that_overlap(tmp_path, kind, shared):
    chest = range(100, -25 - 5 * (shared - 5), -5)
    series = scan_series(write_regions(tmp_path, chest, ABDOMEN, kind))
    n_chest = len(chest)
    assert series.z_mm.tolist() == list(range(100, -100, -5))
    assert numbers_of(series) == [*range(1, n_chest + 1), *range(n_chest + shared + 1, n_chest + 21)]
    text = f"{shared} slices of another acquisition of the same region left out"
    assert remarks_of(series) == [(text, False)]


def test_keep_one_acquisition_adds_parts_on_both_sides(tmp_path):
    """A scan of 2 mm within one of 10 mm, whose own slices lie between the others' there."""
    write_scan(tmp_path, range(100, 0, -2), AcquisitionNumber=1)
    write_scan(tmp_path, range(205, -105, -10), range(51, 82), AcquisitionNumber=2)
    z_mm = scan_series(tmp_path).z_mm
    assert z_mm.tolist() == [*range(205, 100, -10), *range(100, 0, -2), *range(-5, -105, -10)]


@pytest.mark.parametrize(("beyond", "step", "is_kept"), [(3, 5, False), (4, 5, True), (6, 1, False)])
def test_keep_one_acquisition_adds_no_few_slices_of_another_phase(tmp_path, beyond, step, is_kept):
    write_scan(tmp_path, [step * k for k in range(40)], AcquisitionNumber=1)
    second = [step * (k + beyond) for k in range(40)]
    write_scan(tmp_path, second[1:], range(101, 140), AcquisitionNumber=2)
    assert len(scan_series(tmp_path).z_mm) == 40 + beyond * is_kept


@pytest.mark.parametrize("kind", ["acquisition numbers", "acquisition times"])
def test_keep_one_acquisition_joins_no_scan_that_repeats_instance_numbers(tmp_path, kind):
    """It may be another patient's; but then most of an abdomen is lost, which is worth a doubt."""
    series = scan_series(write_regions(tmp_path, CHEST, ABDOMEN, kind, first=1))
    assert series.z_mm.tolist() == list(CHEST)
    text = "20 slices of another acquisition of the same region left out, 14 of them beyond the scan"
    assert remarks_of(series) == [(text, True)]


def test_keep_one_acquisition_joins_no_images_of_another_type(tmp_path):
    write_scan(tmp_path, CHEST, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    write_scan(tmp_path, ABDOMEN, range(26, 46), ImageType=["DERIVED", "SECONDARY", "AXIAL"])
    series = scan_series(tmp_path)
    assert series.z_mm.tolist() == list(CHEST)
    assert [doubtful for _, doubtful in remarks_of(series)] == [True]


def test_keep_one_acquisition_of_many_phases(tmp_path):
    """Ten phases by time, whose numbers are the same or take turns."""
    for phase in range(10):
        tags = {"AcquisitionTime": f"1015{phase:02d}"}
        write_scan(tmp_path / "same", range(0, 60, 5), **tags)
        write_scan(tmp_path / "turns", range(0, 60, 5), range(phase + 1, 121, 10), **tags)
    for folder, numbers in (("same", range(1, 13)), ("turns", range(1, 121, 10))):
        series = scan_series(tmp_path / folder)
        assert numbers_of(series) == list(numbers)[::-1]
        assert remarks_of(series) == [
            ("108 slices of another acquisition of the same region left out", False)
        ]
