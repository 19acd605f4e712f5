"""Real CT, where there is some beside the repository: orientation, Hounsfield units, masks in place."""

from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest

from src.core.targets import ORGANS
from src.ct.dicom_series import scan_series
from src.ct.label_volume import LabelVolume, read_mask_ids
from src.ct.nifti import open_nifti
from src.ct.series import SeriesError, SeriesSource
from src.ct.storage import LocalFile, LocalFolder
from src.ct.windows import WINDOWS, get_windows
from src.data.prepared import image_folder, mask_folder
from src.prepare.grey_slices import find_body, read_grey_slices
from src.prepare.write_series import PrepareJob, prepare_series
from tests.helpers.prepare_runs import read_stack

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct"
CHAOS, TOTAL, GREY = REAL / "chaos", REAL / "totalsegmentator", REAL / "rsna_processed" / "19_14374.nii.gz"
pytestmark = pytest.mark.skipif(not CHAOS.is_dir(), reason="no real CT in ../shared/data/ct")


@pytest.fixture(scope="module")
def liver_masks():
    """(slices, rows, cols) bool, in the order of the DICOM files."""
    paths = sorted((CHAOS / "liver_mask").glob("*.png"))
    return np.stack([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0 for path in paths])


def test_read_gives_the_known_hu_of_a_liver(liver_masks):
    series = scan_series(LocalFolder(CHAOS / "dicom").list())
    files = sorted(path.name for path in (CHAOS / "dicom").iterdir())
    values = [
        series.read(index)[series.grid.orient(liver_masks[files.index(series.source(index))])]
        for index in range(len(series.z_mm))
    ]
    assert np.concatenate(values).mean() == pytest.approx(141, abs=1)


def test_prepare_series_of_a_real_abdomen(tmp_path, liver_masks):
    series = scan_series(LocalFolder(CHAOS / "dicom").list())
    affine_lps = np.eye(4)
    first, last = series.plane(0), series.plane(len(series.z_mm) - 1)
    affine_lps[:3, 0], affine_lps[:3, 1] = first.col_step, first.row_step
    affine_lps[:3, 2] = (last.origin - first.origin) / (len(series.z_mm) - 1)
    affine_lps[:3, 3] = first.origin
    volume = liver_masks.transpose(2, 1, 0).astype(np.uint8)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps
    turned = nib.as_closest_canonical(nib.Nifti1Image(volume, affine))
    nib.save(turned, tmp_path / "1.nii")
    job = PrepareJob(tmp_path / "out", get_windows(("soft",)), 256)
    prepare_series(SeriesSource("1", "1", LocalFolder(CHAOS / "dicom"), LocalFile(tmp_path / "1.nii")), job)

    images = read_stack(image_folder(tmp_path / "out", "1", "1"))
    masks = read_stack(mask_folder(tmp_path / "out", "1", "1"))
    inside = images[masks == 1].mean() / 255 * 400 - 150
    assert inside == pytest.approx(141, abs=4)  # the window clips little of a liver
    _, rows, cols = np.nonzero(masks)
    body_rows = np.flatnonzero(images[40].max(axis=1))
    assert cols.mean() < 120  # liver on the image's left
    assert np.abs(rows.mean() - body_rows.mean()) < 60
    lung = (images == 0)[:, 60:200, 60:200].mean(axis=(1, 2))
    assert lung[:5].mean() > lung[-5:].mean() + 0.1  # lung bases come first: head first
    bone = np.argwhere(images[60] == 255)
    assert bone[:, 0].mean() > body_rows.mean() - 40  # spine, ribs and table are below


@pytest.mark.parametrize("axes", ["RAS", "LPI", "PSR"])
def test_read_grey_slices_is_the_same_for_nifti_and_dicom(tmp_path, axes):
    """Whatever the orientation; the third one has its slices along the second axis."""
    series = scan_series(LocalFolder(CHAOS / "dicom").list())
    first, last = series.plane(0), series.plane(len(series.z_mm) - 1)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 3] = first.col_step, first.row_step, first.origin
    affine[:3, 2] = (last.origin - first.origin) / (len(series.z_mm) - 1)
    hu = np.stack([series.read(index) for index in range(len(series.z_mm))])  # (Z, Y, X)
    image = nib.Nifti1Image(hu.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    )
    nib.save(image.as_reoriented(turn), tmp_path / "ct.nii.gz")

    windows = get_windows(("soft", "organ", "wide"))
    with open_nifti(LocalFile(tmp_path / "ct.nii.gz")) as volume:
        crop, _ = find_body(volume)
        assert crop == find_body(series)[0]
        np.testing.assert_allclose(np.diff(volume.z_mm), np.diff(series.z_mm), atol=1e-3)
        every = range(len(series.z_mm))
        ours, theirs = (read_grey_slices(one, every, crop, windows, 256) for one in (volume, series))
        for (_, one), (_, other) in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_sample_of_totalsegmentators_organs():
    segmentation = LocalFile(TOTAL / "example_seg_fast_force_split.nii.gz")
    ids = read_mask_ids(Path("configs/masks/totalsegmentator.yaml"))
    with (
        open_nifti(LocalFile(TOTAL / "example_ct.nii.gz")) as series,
        LabelVolume.open(segmentation, ids) as volume,
    ):
        hu = np.stack([series.read(index) for index in range(len(series.z_mm))])
        planes = [series.plane(index) for index in range(len(series.z_mm))]
        labels = np.stack([volume.sample(plane, *series.shape) for plane in planes])
    means = [hu[labels == ORGANS[organ]].mean() for organ in ("liver", "spleen")]
    assert means == pytest.approx([45, 33], abs=3)  # scanned without contrast
    slices, rows, cols = (
        {organ: np.nonzero(labels == label)[axis].mean() for organ, label in ORGANS.items()}
        for axis in range(3)
    )
    assert cols["liver"] < cols["spleen"] and cols["right kidney"] < cols["left kidney"]  # left on the right
    assert slices["liver"] < slices["bowel"]  # head first
    assert rows["bowel"] < rows["left kidney"]  # front up


def test_open_nifti_refuses_a_published_volume_without_an_affine():
    """Its affine is the identity, and its slices lie on their side, feet first, which nothing records."""
    with pytest.raises(SeriesError, match="the identity"), open_nifti(LocalFile(GREY), WINDOWS["soft"]):
        pass


def test_open_nifti_keeps_the_greys_of_a_published_8_bit_volume(tmp_path):
    stored = np.asarray(nib.load(GREY).dataobj)
    affine = np.array([[0, -1.5, 0, 200], [-1.5, 0, 0, 200], [0, 0, 5.0, -300], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "1.nii")
    with open_nifti(LocalFile(tmp_path / "1.nii"), WINDOWS["soft"]) as series:
        first = series.read(0)
        np.testing.assert_array_equal(WINDOWS["soft"].grey(series.read(0)), stored[:, :, -1])
        assert first.dtype == np.float32 and series.source_window == WINDOWS["soft"]
