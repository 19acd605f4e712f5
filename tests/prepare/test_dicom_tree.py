"""DICOM files in folders that say nothing: their headers put them together."""

import os
import shutil
from pathlib import Path

import pydicom

from src.ct.series import Rejected
from src.prepare.dicom_tree import safe_id
from src.prepare.sources import find_sources
from tests.helpers.source_trees import described, dicom, ids, names, nifti, text, zipped


def test_find_dicom_groups_by_patient_and_series(hospital):
    found = find_sources(hospital)
    assert found.name == "DICOM"
    assert ids(found) == [("p1", "1.7"), ("p1", "1.8"), ("p2", "1.9")]
    assert [names(source) for source in found.series] == [
        ["C/IM0002.ima", "IM0003"],
        ["A/IM0002", "B/C/IM0001"],
        ["IM0001"],
    ]
    assert (found.other_files, found.left_out) == (4, ())
    assert described(find_sources(zipped(hospital))) == described(found)


def test_find_dicom_is_the_same_with_several_processes(hospital):
    for index in range(600):  # more than one task
        shutil.copy(hospital / "A/IM0001", hospital / f"A/copy{index}")
    found = find_sources(hospital, jobs=2)
    assert described(found) == described(find_sources(hospital))
    assert len(found.series[2].files.list()) == 601


def test_find_sources_of_a_single_file(hospital, tmp_path):
    found = find_sources(hospital / "A/IM0002")
    assert ids(found) == [("p1", "1.8")] and names(found.series[0]) == ["IM0002"]
    nifti(tmp_path / "y.nii")
    assert ids(find_sources(nifti(tmp_path / "x.nii.gz"))) == [("x", "x")]


def test_find_dicom_replaces_missing_ids(tmp_path):
    folder = tmp_path / "disk"
    dicom(folder / "a/b/1", None, "1.7", "1.2")
    dicom(folder / "a/b/2", "", None, None)
    dicom(folder / "3", None, None, None)
    expected = [("1.2", "1.7"), ("a_b-" + safe_id("a/b")[-8:], safe_id("a/b")), ("disk", "disk")]
    assert ids(find_sources(folder)) == expected
    assert ids(find_sources(zipped(folder))) == expected


def test_safe_id():
    assert [safe_id(text) for text in ("p1", "1.2.840", "Zoë_7")] == ["p1", "1.2.840", "Zoë_7"]
    unsafe = ["../p", "a/b", "a b", "a_b", "a\\b", "..", "p" * 300, "p" * 299, "", ".", "\udce9", "\udce8"]
    made = [safe_id(text) for text in unsafe]
    assert len(set(made)) == len(unsafe)
    assert len(safe_id("\u00e9" * 100).encode()) < 120
    assert all("/" not in name and not name.startswith(".") and len(name) < 120 for name in made)


def test_find_dicom_reads_long_headers(tmp_path):
    path = dicom(tmp_path / "disk" / "1", None, "1.7")
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x00091010, "OB", bytes(100_000))
    dataset.PatientID = "p9"
    dataset.save_as(path)
    assert ids(find_sources(tmp_path / "disk")) == [("p9", "1.7")]


def test_find_dicom_keeps_other_modalities_and_damaged_files(tmp_path):
    folder = tmp_path / "disk"
    dicom(folder / "1", "p", "1.7", Modality="MR")
    whole = dicom(folder / "2", "p", "1.8").read_bytes()
    (folder / "2").write_bytes(whole[:150])
    assert ids(find_sources(folder)) == [("disk", "disk"), ("p", "1.7")]


def test_find_dicom_names_unreadable_members_of_a_zip(hospital):
    content = bytearray(zipped(hospital).read_bytes())
    at = content.index(b"A/IM0002") - 30
    content[at : at + 4] = bytes(4)  # no longer the signature of a member
    (hospital.parent / "disk.zip").write_bytes(content)
    found = find_sources(hospital.parent / "disk.zip")
    assert found.left_out == (Rejected("A/IM0002", "member of the zip archive is damaged"),)
    assert ids(found) == [("p1", "1.7"), ("p1", "1.8"), ("p2", "1.9")]


def test_find_dicom_names_files_in_the_root_by_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "disk.v2"
    dicom(folder / "1", "p", None)
    archive = zipped(folder)
    monkeypatch.chdir(folder)
    for path in (".", folder, archive, "../disk.v2/"):
        assert ids(find_sources(Path(path))) == [("p", "disk.v2")]


def test_find_dicom_reports_files_named_like_dicom(hospital):
    for name in ("empty.dcm", "A/text.IMA", "B/text.dicom"):
        text(hospital / name, "")
    for path in (hospital, zipped(hospital)):
        found = find_sources(path)
        assert sorted(item.source for item in found.left_out) == ["A/text.IMA", "B/text.dicom", "empty.dcm"]
        assert {item.reason for item in found.left_out} == {"not a readable DICOM file"}
        assert found.other_files == 4


def test_find_sources_of_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    dicom(tmp_path / name / f"{name}.dcm", None, None, None)
    text(tmp_path / name / f"{name}.ima")
    nifti(tmp_path / name / f"{name}_ct.nii")
    found = find_sources(tmp_path)
    assert len(found.series) == 2 and [item.source for item in found.left_out] == ["caf\\xe9/caf\\xe9.ima"]
    for source in found.series:
        "".join([source.patient_id, source.series_id, *names(source)]).encode()
        assert all(file.read() for file in source.files.list())
