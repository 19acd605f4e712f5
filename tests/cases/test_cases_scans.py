"""Reported cases of several scans under one series UID, of wrong positions, and of several spacings."""

import numpy as np
import pydicom
import pytest

from src.core.errors import UserError
from tests.helpers.dicom_files import PIXEL_MM, SPACING_Z_MM, set_tags, write_series, write_slice
from tests.helpers.prepare_runs import prepare, prepare_input


def only_row(dataset):
    (row,) = dataset.all_series.fillna("").to_dict("records")
    return row


def numbers_of(dataset):
    row = only_row(dataset)
    return dataset.read_slice_table(row["patient_id"], row["series_id"])["instance_number"].tolist()


def from_the_head(folder, n_slices, first, lowest, **tags):
    """Write slices with InstanceNumbers that count from the head, the lowest at `lowest` slices from 0."""
    middle_mm = (lowest + (n_slices - 1) / 2) * SPACING_Z_MM
    write_series(folder, n_slices=n_slices, first=first, shift_mm=(0, 0, middle_mm), **tags)
    for stem in range(first, first + n_slices):
        set_tags(folder / f"{stem}.dcm", InstanceNumber=2 * first + n_slices - 1 - stem)


def test_case_01_chest_and_abdomen_that_overlap_are_one_scan(tmp_path):
    """20 and 16 slices that share 5 heights."""
    chest = {"AcquisitionNumber": 1, "AcquisitionTime": "101500"}
    from_the_head(tmp_path / "ct", n_slices=20, first=1, lowest=0, **chest)
    abdomen = {"AcquisitionNumber": 2, "AcquisitionTime": "101630"}
    from_the_head(tmp_path / "ct", n_slices=16, first=21, lowest=-11, **abdomen)
    dataset = prepare_input(tmp_path / "ct", tmp_path / "out")
    row = only_row(dataset)
    assert (row["slices"], row["status"]) == (31, "ok")
    assert "5 slices of another acquisition of the same region left out" in row["reason"]
    assert numbers_of(dataset) == [*range(1, 21), *range(26, 37)]
    z_mm = dataset.z_mm(row["patient_id"], row["series_id"])
    np.testing.assert_allclose(np.diff(z_mm), -SPACING_Z_MM)


@pytest.mark.parametrize("shift_mm", [1.5, 0.0])
def test_case_06_two_people_under_one_series_uid_are_no_stack(tmp_path, shift_mm):
    """One of them 1.5 mm lower or at the same heights, and with other HU."""
    ids = {"PatientID": "ANON", "SeriesInstanceUID": "1.2.3"}
    write_series(tmp_path / "ct" / "anon_a", **ids)
    write_series(tmp_path / "ct" / "anon_b", shift_mm=(0, 0, -shift_mm), add_hu=50, **ids)
    dataset = prepare_input(tmp_path / "ct", tmp_path / "out")
    row = only_row(dataset)
    assert (row["slices"], row["status"]) == (12, "doubtful")
    assert "several scans in one series: 12 slices of anon_b left out" in row["reason"]
    assert numbers_of(dataset) == list(range(12, 0, -1))


def test_case_06_two_patients_in_a_series_folder_are_no_stack(tmp_path):
    """In the competition's layout, where the folder names the series; here one continues the other."""
    folder = tmp_path / "ct" / "train_images" / "10" / "20"
    write_series(folder, n_slices=14, PatientID="10")
    write_series(folder, first=15, shift_mm=(0, 0, 13 * SPACING_Z_MM), PatientID="11")
    row = only_row(prepare_input(tmp_path / "ct", tmp_path / "out"))
    assert (row["patient_id"], row["slices"], row["status"]) == ("10", 14, "doubtful")
    assert "several patients in one series: 12 slices of 11 left out" in row["reason"]


def test_case_06_copies_of_files_are_no_second_scan(tmp_path):
    ids = {"PatientID": "P", "SeriesInstanceUID": "1.2.3"}
    for name in ("disk", "disk/backup"):
        write_series(tmp_path / "ct" / name, **ids)
    row = only_row(prepare_input(tmp_path / "ct", tmp_path / "out"))
    assert (row["slices"], row["status"], row["reason"]) == (12, "ok", "files left out: 12")


def test_case_10_slices_at_one_height_are_skipped(tmp_path):
    folder = write_series(tmp_path / "ct")
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        x, y, z_mm = dataset.ImagePositionPatient
        set_tags(path, SliceLocation=z_mm, ImagePositionPatient=[x, y, -60])
    with pytest.raises(UserError, match="all 12 slices lie at one height"):
        prepare_input(folder, tmp_path / "out")


def test_case_29_two_spacings_are_no_missing_slices(tmp_path):
    folder = write_series(tmp_path / "ct", n_slices=28)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        x, y, _ = dataset.ImagePositionPatient
        from_head = 28 - dataset.InstanceNumber
        z_mm = 100 - 7 * min(from_head, 13) - 4 * max(from_head - 13, 0)
        set_tags(path, ImagePositionPatient=[x, y, z_mm])
    row = only_row(prepare_input(folder, tmp_path / "out"))
    assert (row["slices"], row["status"]) == (28, "ok")
    assert row["reason"] == "two spacings: 7 mm for 13 slices, then 4 mm"


def test_case_31_shoulders_do_not_set_the_square(tmp_path):
    """Shoulders of 480 mm, lungs, and an abdomen of 280 mm, from the feet upwards."""
    y_mm, x_mm = np.mgrid[:128, :128] * PIXEL_MM - 63.5 * PIXEL_MM
    for number in range(1, 41):
        hu = np.full((128, 128), -1000.0)
        shoulder_mm = min(140 + 20 * (number - 32), 240)
        if shoulder_mm > 140:
            hu[(x_mm / shoulder_mm) ** 2 + (y_mm / 70) ** 2 < 1] = 40
        hu[(x_mm / 140) ** 2 + (y_mm / 100) ** 2 < 1] = -100
        hu[(x_mm / 125) ** 2 + (y_mm / 85) ** 2 < 1] = 45
        hu[np.hypot(x_mm, y_mm - 65) < 18] = 600
        hu[np.hypot(x_mm - 80 * np.cos(number / 10), y_mm + 30) < 35] = -1000  # gas in the bowel
        lung_mm = min(4 * (number - 15), 55, 8 * (37 - number))
        if lung_mm > 0:
            hu[np.hypot(abs(x_mm) - 60, y_mm) < lung_mm] = -850
        position_mm = (x_mm[0, 0], y_mm[0, 0], SPACING_Z_MM * number)
        write_slice(tmp_path / "ct" / f"{number}.dcm", hu, position_mm=position_mm, instance_number=number)
    outcome, images = prepare(tmp_path / "ct", tmp_path / "out", size=96)
    assert (outcome["row"]["status"], outcome["row"]["reason"]) == ("ok", "")
    abdomen = (images[-15:, ..., 0] > 0).any(axis=(0, 1))  # columns that show anything
    assert 0.75 <= abdomen.mean() < 1
    assert not abdomen[0] and not abdomen[-1]  # nothing is cut
    shown_mm = abdomen.sum() * outcome["row"]["pixel_mm"]
    assert shown_mm == pytest.approx(280, abs=2 * PIXEL_MM)
