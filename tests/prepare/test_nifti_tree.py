"""Raw data sets of nnU-Net and TotalSegmentator: cases are patients, and labels are no CT but masks."""

from pathlib import PurePosixPath

import pytest

from src.core.errors import UserError
from src.ct.nifti import nifti_stem
from src.prepare.sources import find_sources
from tests.helpers.source_trees import described, ids, nifti, zipped


def files_at(folder, *paths):
    for path in paths:
        nifti(folder / path)
    return folder


def masks_of(found):
    """Name of each patient's segmentation, None without one."""
    return {source.patient_id: source.segmentation and source.segmentation.name for source in found.series}


@pytest.fixture
def nnunet(tmp_path):
    """Two cases with labels and one without."""
    folder = tmp_path / "Dataset001_Abd"
    files_at(folder, "imagesTr/abd_1_0000.nii.gz", "imagesTr/abd_2_0000.nii.gz", "imagesTs/abd_3_0000.nii.gz")
    return files_at(folder, "labelsTr/abd_1.nii.gz", "labelsTr/abd_2.nii.gz")


def test_find_nifti_takes_the_cases_of_nnunet_for_patients(nnunet):
    cases = [("abd_1", "abd_1_0000"), ("abd_2", "abd_2_0000")]
    found = find_sources(nnunet)
    assert ids(found) == [*cases, ("abd_3", "abd_3_0000")]
    assert found.other_files == 2  # the labels
    assert described(find_sources(zipped(nnunet))) == described(found)
    assert ids(find_sources(nnunet / "imagesTr")) == cases
    assert ids(find_sources(nnunet / "imagesTr/abd_1_0000.nii.gz")) == cases[:1]
    prefixed = [(f"Dataset001_Abd_{case}", series) for case, series in [*cases, ("abd_3", "abd_3_0000")]]
    assert ids(find_sources(nnunet.parent)) == prefixed


def test_find_nifti_refuses_the_labels_of_nnunet_alone(nnunet):
    for path in (nnunet / "labelsTr", nnunet / "labelsTr/abd_1.nii.gz"):
        with pytest.raises(UserError, match="NIfTI files in folders of labels"):
            find_sources(path)


def test_find_nifti_gives_the_channels_of_a_case_to_one_patient(tmp_path):
    files_at(tmp_path / "imagesTr", "a_0000.nii", "a_0001.nii", "b_c_0000.nii", "b_c_0001.nii")
    patients = [("a", "a_0000"), ("a", "a_0001"), ("b_c", "b_c_0000"), ("b_c", "b_c_0001")]
    assert ids(find_sources(tmp_path)) == patients


@pytest.mark.parametrize(
    "stems",
    [("amos_0001", "amos_0004"), ("ct_0000", "ct_0001"), ("liver_12", "liver_13"), ("_0000", "_0001", "a")],
)
def test_find_nifti_keeps_numbers_that_are_no_channels(tmp_path, stems):
    files_at(tmp_path / "imagesTr", *(f"{stem}.nii.gz" for stem in stems))
    assert ids(find_sources(tmp_path)) == [(stem, stem) for stem in stems]


def test_mask_files_of_nnunet(nnunet):
    found = find_sources(nnunet, masks=nnunet / "labelsTr")
    labels = {"abd_1": "abd_1.nii.gz", "abd_2": "abd_2.nii.gz"}
    assert masks_of(found) == {**labels, "abd_3": None}
    assert found.unused_masks == 0
    assert masks_of(find_sources(nnunet / "imagesTr", masks=nnunet / "labelsTr")) == labels


ORGAN_FILES = ("colon", "duodenum", "heart", "kidney_left", "kidney_right", "liver", "small_bowel", "spleen")
ORGAN_LABELS = [
    *(("liver", 1), ("spleen", 2), ("kidney_left", 3), ("kidney_right", 4)),
    *(("colon", 5), ("duodenum", 5), ("small_bowel", 5)),
]


def organs_of(found):
    """Names of each patient's files of one organ with their labels, None without any."""
    return {
        source.patient_id: source.segmentation
        and [
            (PurePosixPath(nifti_stem(file.name)).name, label)
            for file, label in zip(source.segmentation.files, source.segmentation.labels, strict=True)
        ]
        for source in found.series
    }


@pytest.fixture
def totalsegmentator(tmp_path):
    for subject in ("s0001", "s0002"):
        masks = (f"segmentations/{organ}.nii.gz" for organ in ORGAN_FILES)
        files_at(tmp_path / "total" / subject, "ct.nii.gz", *masks)
    return tmp_path / "total"


def test_find_nifti_takes_files_of_one_organ_each_for_masks(totalsegmentator):
    found = find_sources(totalsegmentator)
    assert ids(found) == [("s0001", "ct"), ("s0002", "ct")]
    assert organs_of(found) == {"s0001": ORGAN_LABELS, "s0002": ORGAN_LABELS}
    assert described(find_sources(zipped(totalsegmentator))) == described(found)


def test_find_nifti_gives_files_of_organs_to_neither_of_two_volumes(totalsegmentator):
    nifti(totalsegmentator / "s0002/late.nii.gz")
    found = find_sources(totalsegmentator)
    assert [source.segmentation is None for source in found.series] == [False, True, True]


def test_mask_files_of_one_organ_each(tmp_path):
    files_at(tmp_path / "ct", "s1/ct.nii.gz", "s2/ct.nii.gz", "x.nii.gz")
    masks = ("s1/spleen.nii.gz", "s1/aorta.nii.gz", "s2/spleen.nii.gz", "x/aorta.nii.gz", "x/colon.nii.gz")
    found = find_sources(tmp_path / "ct", masks=files_at(tmp_path / "masks", *masks))
    assert organs_of(found) == {"s1": [("spleen", 2)], "s2": [("spleen", 2)], "x": None}
    assert found.unused_masks == 2
