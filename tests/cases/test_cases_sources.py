"""Reported cases of input as it comes: read where it breaks a rule, or refused by name."""

import zipfile

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless

from src.core.errors import UserError
from tests.helpers.dicom_files import set_decimal_text, set_tags, write_series
from tests.helpers.folders import files_of
from tests.helpers.nifti_files import lps_affine, patient, save, set_header
from tests.helpers.prepare_runs import prepare_input, read_stack


def rows(dataset):
    """Patient, series, number of slices, status and reason of every series."""
    columns = ["patient_id", "series_id", "slices", "status", "reason"]
    return dataset.all_series[columns].fillna("").values.tolist()


def only_row(dataset):
    (row,) = dataset.all_series.fillna("").to_dict("records")
    return row


def check_liver(dataset, *ids):
    """The masks of a series have one label, 1, and lie on the pixels of 120 HU in the soft window."""
    soft = read_stack(dataset.folder.joinpath("images", *ids))[..., 0]
    masks = read_stack(dataset.folder.joinpath("masks", *ids))
    assert set(np.unique(masks)) == {0, 1}
    assert np.median(soft[masks == 1]) == 172 and np.median(soft[masks == 0]) < 172


def images_of(dataset):
    """Content of every image, by its path below images/."""
    return {name: content for name, content in files_of(dataset.folder / "images").items() if ".png" in name}


def test_case_08_a_zip_with_backslashes_is_read_like_its_folder(tmp_path):
    folder = tmp_path / "rsna"
    write_series(folder / "train_images" / "10" / "20")
    liver = patient(lps_affine()) == 120
    (folder / "segmentations").mkdir()
    save(folder / "segmentations" / "20.nii", liver, dtype="uint8")
    archive = tmp_path / "windows.zip"
    with zipfile.ZipFile(archive, "w") as members:
        for name, content in files_of(folder).items():
            members.writestr(name.replace("/", "\\"), content)
    row = only_row(dataset := prepare_input(archive, tmp_path / "out"))
    assert (row["patient_id"], row["series_id"], row["status"], row["masks"]) == ("10", "20", "ok", True)
    whole = prepare_input(folder, tmp_path / "whole")
    for inner in ("images", "masks"):
        assert files_of(dataset.folder / inner) == files_of(whole.folder / inner) != {}


def test_case_11_cases_of_nnunet_are_patients(tmp_path, capsys):
    folder = tmp_path / "Dataset001_Abd"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    hu = patient(lps_affine())
    for case in ("abd_1", "abd_2"):
        save(folder / "imagesTr" / f"{case}_0000.nii.gz", hu)
        save(folder / "labelsTr" / f"{case}.nii.gz", (hu == 120) * 7, dtype="uint8")
    (folder / "dataset.json").write_text('{"labels": {"background": 0, "aorta": 1, "liver": 7}}')
    dataset = prepare_input(folder, tmp_path / "out", "--masks", folder / "labelsTr")
    assert rows(dataset) == [[case, f"{case}_0000", 9, "ok", ""] for case in ("abd_1", "abd_2")]
    for case in ("abd_1", "abd_2"):
        check_liver(dataset, case, f"{case}_0000")
    text = "".join(capsys.readouterr())
    assert "dataset.json beside it: 7 liver; others are background" in text and "one patient" not in text


def test_case_11_files_of_one_organ_each_are_masks(tmp_path):
    """As TotalSegmentator writes them. A table of ids does not concern them."""
    hu = patient(lps_affine())
    for subject in ("s1", "s2"):
        (tmp_path / "ct" / subject / "segmentations").mkdir(parents=True)
        save(tmp_path / "ct" / subject / "ct.nii.gz", hu)
        for name, organ in (("liver", hu == 120), ("spleen", 0 * hu), ("heart", hu == 40)):
            save(tmp_path / "ct" / subject / "segmentations" / f"{name}.nii.gz", organ, dtype="uint8")
    dataset = prepare_input(tmp_path / "ct", tmp_path / "out", "--mask-ids", "configs/masks/flare23.yaml")
    assert rows(dataset) == [[subject, "ct", 9, "ok", ""] for subject in ("s1", "s2")]
    for subject in ("s1", "s2"):
        check_liver(dataset, subject, "ct")


def test_case_11_a_warning_where_all_series_belong_to_one_patient(tmp_path, capsys):
    (tmp_path / "ct" / "all").mkdir(parents=True)
    for name in ("1.nii", "2.nii"):
        save(tmp_path / "ct" / "all" / name, patient(lps_affine()))
    prepare_input(tmp_path / "ct", tmp_path / "out")
    assert "all 2 series belong to one patient, all: none can be held out" in "".join(capsys.readouterr())


def test_case_12_the_qform_is_used_where_the_sform_is_zero(tmp_path):
    (tmp_path / "ct").mkdir()
    path = save(tmp_path / "ct" / "1.nii", patient(lps_affine())).path
    whole = prepare_input(tmp_path / "ct", tmp_path / "whole")
    set_header(path, qform_code=1, srow_x=0, srow_y=0, srow_z=0)
    row = only_row(dataset := prepare_input(tmp_path / "ct", tmp_path / "out"))
    assert (row["slices"], row["status"], row["reason"]) == (9, "ok", "sform is not valid: qform used")
    assert images_of(dataset) == images_of(whole)


def test_case_13_decimal_commas_are_read(tmp_path):
    folder = write_series(tmp_path / "ct")
    whole = prepare_input(folder, tmp_path / "whole")
    for path in folder.iterdir():
        set_decimal_text(path, "PixelSpacing", "4,0\\4,0")
    dataset = prepare_input(folder, tmp_path / "out")
    row = only_row(dataset)
    assert (row["slices"], row["spacing_z_mm"], row["status"]) == (12, 5, "ok")
    assert row["reason"] == "decimal commas read as points in PixelSpacing"
    assert images_of(dataset) == images_of(whole)


def test_case_14_rounded_spacings_are_one_grid(tmp_path):
    folder = write_series(tmp_path / "ct", n_slices=24, pixel_mm=(0.9765625, 0.9765625))
    for number in range(1, 25, 2):
        set_tags(folder / f"{number}.dcm", PixelSpacing=["0.9765", "0.9765"])
    row = only_row(prepare_input(folder, tmp_path / "out"))
    assert (row["slices"], row["spacing_z_mm"], row["status"], row["reason"]) == (24, 5, "ok", "")


def test_case_16_a_nifti_pair_is_refused_by_name(tmp_path):
    (tmp_path / "ct").mkdir()
    save(tmp_path / "ct" / "1.img", patient(lps_affine()), kind=nib.Nifti1Pair)
    with pytest.raises(UserError, match="2 files left out: NIfTI pair or ANALYZE file: convert it to"):
        prepare_input(tmp_path / "ct", tmp_path / "out")


@pytest.mark.parametrize("change", [2, 1 << 20])
def test_case_32_jpeg_2000_is_decoded_beyond_a_wrong_tile_length(tmp_path, change):
    folder = write_series(tmp_path / "ct", n_slices=3)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
        dataset.save_as(path)
    whole = prepare_input(folder, tmp_path / "whole")
    for path in folder.iterdir():
        content = path.read_bytes()
        at = content.rindex(b"\xff\x90\x00\x0a") + 6
        length = int.from_bytes(content[at : at + 4], "big") + change
        path.write_bytes(content[:at] + length.to_bytes(4, "big") + content[at + 4 :])
    row = only_row(dataset := prepare_input(folder, tmp_path / "out"))
    assert (row["slices"], row["status"], row["reason"]) == (3, "ok", "")
    assert images_of(dataset) == images_of(whole)
    assert max(map(len, images_of(dataset).values())) > 500
