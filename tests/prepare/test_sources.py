"""What is found at --input: the competition's layout, NIfTI volumes, DICOM beside them, masks."""

import shutil
from pathlib import Path

import pytest

from src.core.errors import UserError
from src.prepare.sources import find_sources
from tests.helpers.source_trees import described, dicom, ids, names, nifti, text, zipped


def test_find_sources_refuses_an_input_without_ct(tmp_path):
    text(tmp_path / "disk/a/readme.txt")
    nifti(tmp_path / "disk/labelsTr/1.nii")
    with pytest.raises(UserError, match="only 1 NIfTI files in folders of labels, 1 files that are neither"):
        find_sources(tmp_path / "disk")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="only empty folders"):
        find_sources(tmp_path / "none")
    with pytest.raises(UserError, match="no folder or file"):
        find_sources(tmp_path / "nowhere")


# The competition's layout


@pytest.fixture
def competition(tmp_path):
    folder = tmp_path / "rsna"
    for patient, series in (("10", "7"), ("10", "30"), ("9", "5")):
        for instance in (10, 9, 1):
            dicom(folder / f"train_images/{patient}/{series}/{instance}.dcm")
    dicom(folder / "test_images/48843/62825/30.dcm")
    nifti(folder / "segmentations/7.nii")
    nifti(folder / "segmentations/7.nii.gz")
    nifti(folder / "segmentations/5.nii.gz")
    text(folder / "train.csv")
    return folder


def test_find_sources_of_the_competition_reads_no_image(competition):
    for path in competition.rglob("*.dcm"):
        path.write_bytes(b"")
    found = find_sources(competition)
    assert found.name == "rsna train"
    assert ids(found) == [("10", "30"), ("10", "7"), ("9", "5")]
    assert names(found.series[0]) == ["1.dcm", "10.dcm", "9.dcm"]
    segmentations = [source.segmentation and source.segmentation.name for source in found.series]
    assert segmentations == [None, "7.nii", "5.nii.gz"]


def test_find_sources_of_the_competition_is_the_same_in_a_zip(competition):
    for split in ("train", "test", None):
        local = described(find_sources(competition, split))
        assert described(find_sources(zipped(competition), split)) == local


def test_find_sources_reports_stray_files_of_the_competition(competition):
    text(competition / "train_images/10/7/note")
    text(competition / "train_images/10/stray.dcm")
    text(competition / "train_images/list.txt")
    for path in (competition, zipped(competition)):
        found = find_sources(path)
        assert names(found.series[1]) == ["1.dcm", "10.dcm", "9.dcm", "note"]
        assert [(item.source, item.reason) for item in found.left_out] == [
            ("train_images/list.txt", "not in <patient>/<series>/"),
            ("train_images/10/stray.dcm", "not in <patient>/<series>/"),
        ]


def test_find_sources_enters_folders_around_the_competition(competition, tmp_path):
    shutil.move(competition, tmp_path / "outer" / "inner" / "rsna")
    assert ids(find_sources(tmp_path / "outer", "test")) == [("48843", "62825")]
    assert ids(find_sources(zipped(tmp_path / "outer"), "test")) == [("48843", "62825")]


def test_find_sources_refuses_a_missing_split(competition, tmp_path):
    shutil.rmtree(competition / "train_images")
    assert find_sources(competition).name == "rsna test"
    with pytest.raises(UserError, match="no train_images; --split test is there"):
        find_sources(competition, "train")
    with pytest.raises(UserError, match="there is no --split train"):
        find_sources(dicom(tmp_path / "tree" / "1").parent, "train")
    shutil.rmtree(competition / "test_images" / "48843")
    with pytest.raises(UserError, match="no series in test_images"):
        find_sources(competition)


# NIfTI volumes


def test_find_nifti_names_volumes_by_their_paths(tmp_path):
    folder = tmp_path / "flare"
    for path in ("x.nii", "a/y_0000.nii.gz", "labelsTr/x.nii", "s1/segmentations/liver.nii.gz"):
        nifti(folder / path)
    text(folder / "a/b/z.NII.GZ")
    text(folder / "notes.txt")
    found = find_sources(folder)
    assert found.name == "NIfTI"
    assert ids(found) == [("a", "y_0000"), ("a_b", "z"), ("x", "x")]
    assert [names(source) for source in found.series] == [["a/y_0000.nii.gz"], ["a/b/z.NII.GZ"], ["x.nii"]]
    assert {source.kind for source in found.series} == {"nifti"}
    assert found.other_files == 3
    assert described(find_sources(zipped(folder))) == described(found)


def test_find_nifti_refuses_volumes_with_the_same_ids(tmp_path):
    nifti(tmp_path / "a/b/x.nii")
    nifti(tmp_path / "a_b/x.nii.gz")
    with pytest.raises(UserError, match=r"a/b/x\.nii and a_b/x\.nii\.gz would both be series x of patient"):
        find_sources(tmp_path)


def test_find_nifti_shortens_ids_of_deep_folders(tmp_path):
    for name in ("x", "y"):
        nifti(tmp_path / "/".join(["deep" * 20] * 4) / name / "1.nii")
    made = {patient for patient, _ in ids(find_sources(tmp_path))}
    assert len(made) == 2 and max(map(len, made)) <= 200


def test_find_sources_of_dicom_and_nifti_together(hospital):
    nifti(hospital / "B" / "ct.nii")
    found = find_sources(hospital)
    assert found.name == "DICOM and NIfTI"
    assert ids(found) == [("B", "ct"), ("p1", "1.7"), ("p1", "1.8"), ("p2", "1.9")]


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("ct.hdr", "ct.img"), "NIfTI pair or ANALYZE"),
        (("ct.HDR.gz", "ct.img.gz"), "NIfTI pair or ANALYZE"),
        (("ct.nrrd", "ct.nhdr"), "NRRD"),
        (("ct.mha", "ct.mhd"), "MetaImage"),
    ],
)
def test_find_sources_names_formats_that_are_not_read(tmp_path, names, kind):
    for name in names:
        text(tmp_path / "disk/a" / name)
    reason = f"{kind} file: convert it to .nii.gz"
    with pytest.raises(UserError, match=f"2 files left out: {reason}"):
        find_sources(tmp_path / "disk")
    nifti(tmp_path / "disk/x.nii")
    dicom(tmp_path / "disk/b/slice.img")  # a name that DICOM files have as well
    found = find_sources(tmp_path / "disk")
    assert ids(found) == [("p", "1.2.3"), ("x", "x")]
    assert [(item.source, item.reason) for item in found.left_out] == [
        (f"a/{name}", reason) for name in sorted(names)
    ]


# Masks


def masks_of(path, masks):
    found = find_sources(path, masks=masks)
    return {
        source.series_id: source.segmentation and Path(source.segmentation.name).as_posix()
        for source in found.series
    }


def test_mask_files_match_the_path_or_name_of_a_volume(tmp_path):
    volumes, masks = tmp_path / "images", tmp_path / "labels"
    flat = {"x": "a/x.nii", "y_0000": "b/y.nii.gz", "z_0000": "z.nii.gz", "w_0000": "w.nii.gz"}
    for path in ("a/x.nii.gz", "b/y_0000.nii.gz", "z_0000.nii", "d/w_0000.nii.gz", "alone.nii"):
        nifti(volumes / path)
    for path in ("b/ct.nii", "c/ct.nii"):  # which of them is ct.nii?
        nifti(volumes / path)
    for path in (*flat.values(), "other.nii", "ct.nii"):
        nifti(masks / path)
    expected = flat | {"alone": None, "ct": None}
    assert masks_of(volumes, masks) == expected
    assert masks_of(zipped(volumes), zipped(masks)) == expected


def test_mask_files_alone_in_the_folder_of_a_patient(tmp_path):
    nifti(tmp_path / "images/s1/ct.nii.gz")
    nifti(tmp_path / "images/s2/ct.nii.gz")
    nifti(tmp_path / "images/flat.nii.gz")
    for path in ("s1/multilabel.nii.gz", "s2/first.nii.gz", "s2/second.nii.gz", "flat/seg.nii"):
        nifti(tmp_path / "labels" / path)
    found = find_sources(tmp_path / "images", masks=tmp_path / "labels")
    chosen = [source.segmentation and source.segmentation.name for source in found.series]
    assert chosen == ["flat/seg.nii", "s1/multilabel.nii.gz", None]


def test_mask_files_inside_the_input_are_no_volumes(tmp_path):
    nifti(tmp_path / "ct/x.nii")
    nifti(tmp_path / "truth/ct/x.nii")
    found = find_sources(tmp_path, masks=tmp_path / "truth")
    assert ids(found) == [("ct", "x")]
    assert found.series[0].segmentation.name == "ct/x.nii"


def test_mask_files_match_the_ids_of_dicom_series(hospital, competition, tmp_path):
    for path in ("1.8.nii.gz", "p2/1.9.nii", "5.nii", "30/total.nii.gz"):
        nifti(tmp_path / "masks" / path)
    assert masks_of(hospital, tmp_path / "masks") == {"1.7": None, "1.8": "1.8.nii.gz", "1.9": "p2/1.9.nii"}
    assert masks_of(competition, tmp_path / "masks") == {"30": "30/total.nii.gz", "7": "7.nii", "5": "5.nii"}


def test_find_sources_counts_unused_masks(tmp_path):
    for path in ("images/x.nii", "images/y.nii", "labels/x.nii", "labels/z.nii", "labels/a/b.nii"):
        nifti(tmp_path / path)
    assert find_sources(tmp_path / "images", masks=tmp_path / "labels").unused_masks == 2
    assert find_sources(tmp_path / "images").unused_masks == 0


def test_find_sources_refuses_masks_without_a_series(tmp_path):
    nifti(tmp_path / "images/x.nii")
    nifti(tmp_path / "labels/y.nii")
    with pytest.raises(UserError, match=r"no segmentation in .* has the name of a series"):
        find_sources(tmp_path / "images", masks=tmp_path / "labels")
    with pytest.raises(UserError, match="need a folder of their own"):
        find_sources(tmp_path / "images", masks=tmp_path / "images")
    with pytest.raises(UserError, match="need a folder of their own"):
        find_sources(archive := zipped(tmp_path / "images"), masks=archive)
    with pytest.raises(UserError, match=r"no folder or file .* \(--masks\)"):
        find_sources(tmp_path / "images", masks=tmp_path / "none")
