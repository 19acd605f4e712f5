"""Reported cases of pixels that are no HU, or not where the header says: mended, doubted or refused."""

import nibabel as nib
import numpy as np
import pydicom
import pytest

from src.core.errors import UserError
from tests.helpers.dicom_files import set_tags, write_series
from tests.helpers.folders import files_of
from tests.helpers.nifti_files import lps_affine, patient
from tests.helpers.prepare_runs import prepare_input

IDS = {"PatientID": "P", "SeriesInstanceUID": "1.2"}


def rows(dataset):
    """(slices, status, reason) by patient."""
    table = dataset.all_series.set_index("patient_id").assign(reason=lambda table: table.reason.fillna(""))
    return {patient: (row.slices, row.status, row.reason) for patient, row in table.iterrows()}


def only_row(dataset):
    (row,) = rows(dataset).values()
    return row


def images_of(dataset):
    """Content of every image, by its path below images/."""
    return {name: content for name, content in files_of(dataset.folder / "images").items() if ".png" in name}


def true_images(folder):
    """Images of the patient whom `write_series` writes."""
    dataset = prepare_input(
        write_series(folder / "true", PatientID="P", SeriesInstanceUID="1.2"), folder / "t"
    )
    return images_of(dataset)


def change_pixels(path, change):
    """Replace the stored values of a file, uint16."""
    dataset = pydicom.dcmread(path)
    stored = np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns)
    dataset.PixelData = change(stored).astype("<u2").tobytes()
    dataset.save_as(path)


def test_case_02_bits_stored_of_each_slice_are_no_8_bit_source(tmp_path):
    """The lowest slice is air, which 6 bits hold."""
    folder = write_series(tmp_path / "ct", signed=False, intercept=-1024, **IDS)
    for number in range(1, 13):
        bits = 6 if number == 1 else 11
        set_tags(folder / f"{number}.dcm", BitsStored=bits, HighBit=bits - 1)
    change_pixels(folder / "1.dcm", lambda stored: np.full_like(stored, 24))
    dataset = prepare_input(folder, tmp_path / "out")
    assert only_row(dataset) == (12, "ok", "")
    expected = true_images(tmp_path)
    lowest = max(expected)
    assert {name: content for name, content in images_of(dataset).items() if name != lowest} == {
        name: content for name, content in expected.items() if name != lowest
    }


def test_case_03_the_sign_of_12_bits_is_seen_in_the_values(tmp_path):
    folder = write_series(tmp_path / "ct", bits_stored=12, PixelRepresentation=0, **IDS)
    dataset = prepare_input(folder, tmp_path / "out")
    assert only_row(dataset) == (12, "ok", "PixelRepresentation is wrong: read as signed")
    assert images_of(dataset) == true_images(tmp_path)


def test_case_04_high_bit_says_where_the_bits_are(tmp_path):
    folder = write_series(tmp_path / "ct", signed=False, intercept=-1024, **IDS)
    for path in folder.iterdir():
        change_pixels(path, lambda stored: stored << 4)
        set_tags(path, BitsStored=12, HighBit=15)
    dataset = prepare_input(folder, tmp_path / "out")
    assert only_row(dataset) == (12, "ok", "HighBit: pixels lie 4 bits above the lowest")
    assert images_of(dataset) == true_images(tmp_path)


@pytest.mark.parametrize("empty", [0, 24])
def test_case_05_slices_without_a_body_are_left_out(tmp_path, empty):
    """P2 shows nothing, P3 nothing in every second slice: zeros, or air."""
    for patient_id, step in (("P1", 0), ("P2", 1), ("P3", 2)):
        folder = write_series(
            tmp_path / "ct" / patient_id, signed=False, intercept=-1024, PatientID=patient_id
        )
        for number in range(1, 13, step) if step else ():
            change_pixels(folder / f"{number}.dcm", lambda stored: np.full_like(stored, empty))
    by_patient = rows(prepare_input(tmp_path / "ct", tmp_path / "out"))
    assert by_patient["P1"] == (12, "ok", "")
    assert by_patient["P2"][1:] == ("skipped", "not a CT in HU: no slice shows a body")
    n_slices, status, reason = by_patient["P3"]
    assert (n_slices <= 7, status) == (True, "doubtful") and "within the body are blank" in reason


@pytest.mark.parametrize("scale", ["standardised", "-1 to 1", "0 to 1"])
def test_case_07_scaled_volumes_are_no_hu(tmp_path, scale):
    hu = patient(lps_affine()).astype(np.float32)
    unit = np.clip((hu + 1000) / 2000, 0, 1)
    scaled = {"standardised": (hu - hu.mean()) / hu.std(), "-1 to 1": 2 * unit - 1, "0 to 1": unit}[scale]
    (tmp_path / "ct").mkdir()
    nib.save(nib.Nifti1Image(scaled, np.diag([-5, -4.5, 8, 1])), tmp_path / "ct" / "1.nii.gz")
    cause = "neither Hounsfield units nor grey levels" if scale == "0 to 1" else "all values lie within"
    with pytest.raises(UserError, match=cause):
        prepare_input(tmp_path / "ct", tmp_path / "out")


@pytest.mark.parametrize(
    "image_type, unit, cause",
    [
        ("DERIVED\\PRIMARY\\PERFUSION\\RCBF", "", "means a perfusion map"),
        ("DERIVED\\SECONDARY\\AXIAL\\DE_IODINE", "US", "means a map of a material"),
    ],
)
def test_case_27_maps_that_are_derived_from_a_ct_are_refused(tmp_path, image_type, unit, cause):
    folder = write_series(tmp_path / "ct", ImageType=image_type.split("\\"), RescaleType=unit)
    for path in folder.iterdir():
        change_pixels(path, lambda stored: np.clip(stored.view("<i2"), 0, 120))
    with pytest.raises(UserError, match=cause):
        prepare_input(folder, tmp_path / "out")


def test_case_28_signed_values_without_a_rescale_are_recognised(tmp_path):
    """The stored values are HU + 1024."""
    folder = write_series(tmp_path / "ct", intercept=-1024, **IDS)
    for path in folder.iterdir():
        set_tags(path, RescaleSlope=None, RescaleIntercept=None)
    dataset = prepare_input(folder, tmp_path / "out")
    reason = "RescaleIntercept is missing or wrong: read with -1024"
    assert only_row(dataset) == (12, "doubtful", reason)
    assert images_of(dataset) == true_images(tmp_path)


def test_case_30_coarse_grey_levels_are_doubtful(tmp_path):
    """Levels 32 HU apart, with the noise that makes neighbouring levels occur."""
    folder = write_series(tmp_path / "ct", signed=False, intercept=-1024, **IDS)
    rng = np.random.default_rng(0)
    for path in folder.iterdir():
        change_pixels(
            path, lambda stored: np.clip(stored + rng.normal(0, 40, stored.shape), 0, None) // 32 * 32
        )
    slices, status, reason = only_row(prepare_input(folder, tmp_path / "out"))
    assert (slices, status, reason) == (12, "doubtful", "grey levels are 32 HU apart")


@pytest.mark.parametrize(
    "unit, status", [("Houndsfield Unit", "ok"), ("Hounsfield", "ok"), ("XU", "doubtful")]
)
def test_case_34_an_unknown_rescale_type_is_not_refused(tmp_path, unit, status):
    folder = write_series(tmp_path / "ct", RescaleType=unit, **IDS)
    reason = "" if status == "ok" else "RescaleType XU is an unknown unit"
    dataset = prepare_input(folder, tmp_path / "out")
    assert only_row(dataset) == (12, status, reason)
    assert images_of(dataset) == true_images(tmp_path)
