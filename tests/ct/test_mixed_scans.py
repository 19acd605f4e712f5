"""Two people, or two scans, under one series UID are never one stack."""

import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from tests.helpers.dicom_files import set_tags
from tests.helpers.dicom_syntaxes import write_enhanced
from tests.helpers.scans import numbers_of, remarks_of, scan_tree, write_scan

ONE = range(-60, 60, 5)
"""Heights of 24 slices in mm."""

OTHER = [-58.5 + 5 * k for k in range(24)]
"""As many between them."""


def sources(series):
    """Folders of the slices that are kept."""
    return {header.file.name.split("/")[0] for header in series.headers}


@pytest.mark.parametrize(
    "heights", [OTHER, OTHER[::-1], [z + 200 for z in OTHER]], ids=["same", "reversed", "far"]
)
@pytest.mark.parametrize("times", [{}, {"AcquisitionTime": "143000", "AcquisitionNumber": 3}])
def test_keep_one_scan_of_two_folders_that_repeat_instance_numbers(tmp_path, heights, times):
    write_scan(tmp_path / "anon_a", ONE)
    write_scan(tmp_path / "anon_b", heights[:20], hu=90, **times)
    series = scan_tree(tmp_path)
    assert (sources(series), len(series.z_mm)) == ({"anon_a"}, 24)
    assert remarks_of(series) == [("several scans in one series: 20 slices of anon_b left out", True)]
    assert {item.reason for item in series.rejected} == {"another scan in the same series"}


def test_keep_one_scan_keeps_the_largest_of_many_folders(tmp_path):
    for person in range(6):
        write_scan(tmp_path / f"{person}", [z + 0.7 * person for z in range(0, 50 + 5 * (person == 4), 5)])
    series = scan_tree(tmp_path)
    assert sources(series) == {"4"}
    assert remarks_of(series) == [("several scans in one series: 50 slices left out", True)]


def test_keep_one_scan_joins_folders_of_one_series(tmp_path):
    """An export that puts every 10 files into a folder, in any order; one number occurs twice."""
    numbers = np.random.default_rng(0).permutation(40)
    for start in range(0, 40, 10):
        some = numbers[start : start + 10].tolist()
        write_scan(tmp_path / f"{start}", [5.0 * k for k in some], [4 if k == 5 else k + 1 for k in some])
    series = scan_tree(tmp_path)
    assert len(series.z_mm) == 40 and series.remarks == ()


def test_keep_one_scan_joins_folders_that_continue_each_other(tmp_path):
    """Two stations of the table, each numbered from 1."""
    write_scan(tmp_path / "a", range(0, 100, 5))
    write_scan(tmp_path / "b", range(100, 160, 5))
    series = scan_tree(tmp_path)
    assert len(series.z_mm) == 32 and series.remarks == ()


def test_keep_one_scan_without_instance_numbers(tmp_path):
    """Positions tell: each folder is a pass, and they take turns."""
    write_scan(tmp_path / "a", ONE, [0] * 24)
    write_scan(tmp_path / "b", OTHER, [0] * 24)
    series = scan_tree(tmp_path)
    assert series.z_mm.tolist() == list(ONE)[::-1]
    assert [doubtful for _, doubtful in remarks_of(series)] == [True]


@pytest.mark.parametrize("keyword", ["SeriesInstanceUID", "FrameOfReferenceUID"])
@pytest.mark.parametrize("heights", [ONE, OTHER], ids=["equal heights", "between"])
def test_keep_one_scan_by_other_tags(tmp_path, keyword, heights):
    """Two people in one folder; the second one's files come first and last."""
    write_scan(tmp_path, list(heights)[:12], hu=90, **{keyword: "1.2.9"})
    write_scan(tmp_path, ONE, **{keyword: "1.2.8"})
    write_scan(tmp_path, list(heights)[12:23], range(13, 24), hu=90, **{keyword: "1.2.9"})
    series = scan_tree(tmp_path)
    assert {header.file.name for header in series.headers} == {f"{index:03d}.dcm" for index in range(12, 36)}
    ((text, doubtful),) = remarks_of(series)
    assert text.startswith("several scans in one series: 23 slices") and doubtful


@pytest.mark.parametrize(
    ("keyword", "values", "text"),
    [
        ("PatientID", ("P1", "P2"), "several patients in one series: 12 slices of P2 left out"),
        ("StudyInstanceUID", ("1.1", "1.2"), "several studies in one series: 12 slices of 1.2 left out"),
    ],
)
def test_keep_one_scan_never_joins_patients_or_studies(tmp_path, keyword, values, text):
    """Although the second one continues the first in position and number; one file lacks the tag."""
    write_scan(tmp_path, range(0, 100, 5), **{keyword: values[0]})
    set_tags(tmp_path / "007.dcm", **{keyword: None})
    write_scan(tmp_path, range(100, 160, 5), range(21, 33), **{keyword: values[1]})
    series = scan_tree(tmp_path)
    assert len(series.z_mm) == 20
    assert remarks_of(series) == [(text, True)]


def test_keep_one_scan_ignores_identifiers_made_up_for_each_file(tmp_path):
    uids = [f"1.2.{index}" for index in range(24)]
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID")
    write_scan(tmp_path, ONE, **dict.fromkeys(keywords, uids))
    series = scan_tree(tmp_path)
    assert len(series.z_mm) == 24 and series.remarks == ()


@pytest.mark.parametrize("folder", ["a", "b"])
def test_exclude_copies_leaves_no_doubt(tmp_path, folder):
    write_scan(tmp_path / "a", ONE, AcquisitionTime="101500")
    write_scan(tmp_path / folder, ONE, AcquisitionTime="101500")
    series = scan_tree(tmp_path)
    assert sources(series) == {"a"} and len(series.z_mm) == 24
    assert series.remarks == () and len(series.rejected) == 24


def test_exclude_copies_compares_pixels(tmp_path):
    """Two people scanned at the same heights, of whom nothing but pixels and folders differ."""
    write_scan(tmp_path / "a", list(ONE)[:23])
    write_scan(tmp_path / "b", ONE, hu=90)
    series = scan_tree(tmp_path)
    assert sources(series) == {"b"} and len(series.z_mm) == 24
    assert remarks_of(series) == [("several scans in one series: 23 slices of a left out", True)]


@pytest.mark.parametrize("heights", [ONE, OTHER], ids=["equal heights", "between"])
def test_keep_unrepeated_numbers_of_two_people_in_one_folder(tmp_path, heights):
    write_scan(tmp_path, ONE)
    write_scan(tmp_path, heights, hu=90)
    series = scan_tree(tmp_path)
    assert {header.file.name for header in series.headers} == {f"{index:03d}.dcm" for index in range(24)}
    assert numbers_of(series) == list(range(24, 0, -1))
    assert remarks_of(series) == [("several scans in one series: 24 slices left out", True)]


def test_keep_unrepeated_numbers_doubts_what_nothing_tells_apart(tmp_path):
    """One was scanned from the head, the other from the feet."""
    write_scan(tmp_path, ONE)
    write_scan(tmp_path, OTHER[::-1], hu=90)
    assert [doubtful for _, doubtful in remarks_of(scan_tree(tmp_path))] == [True]


def test_keep_unrepeated_numbers_joins_stations_of_one_folder(tmp_path):
    """Three of them, of which two share a height, and slices without a number."""
    for start in (0, 50, 95):
        write_scan(tmp_path, range(start, start + 50, 5))
    write_scan(tmp_path, [145, 150, 155], [0, 0, 0])
    series = scan_tree(tmp_path)
    assert series.z_mm.tolist() == list(range(155, -5, -5)) and series.remarks == ()


def test_keep_unrepeated_numbers_of_two_files_of_frames(tmp_path):
    """The second one goes from head to feet; frames are numbered from 1 in both."""
    stored, encoding = np.zeros((12, 8, 8), int), {"bits_stored": 16, "signed": True}
    for name, heights in (("a", range(0, 60, 5)), ("b", range(57, -3, -5))):
        positions = [(0, 0, z_mm) for z_mm in heights]
        path = tmp_path / f"{name}.dcm"
        write_enhanced(path, stored, ExplicitVRLittleEndian, positions_mm=positions, **encoding)
    series = scan_tree(tmp_path)
    assert {header.file.name.split(" ")[0] for header in series.headers} == {"a.dcm"}
    assert remarks_of(series) == [("several scans in one series: 12 slices of b.dcm left out", True)]
