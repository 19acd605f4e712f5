"""Real CT, where there is some beside the repository: orientation, Hounsfield units, masks in place."""

from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from src.core.targets import ORGANS
from src.ct.label_ids import read_mask_ids
from src.ct.label_volume import LabelVolume
from src.ct.nifti import open_nifti
from src.ct.series import SeriesError, SeriesSource
from src.ct.storage import LocalFile, LocalFolder
from src.ct.windows import WINDOWS, get_windows
from src.data.prepared import image_folder, mask_folder
from src.prepare.grey_slices import examine, read_grey_slices
from src.prepare.write_series import PrepareJob, prepare_series
from tests.helpers.dicom_files import read_volume, scan_series
from tests.helpers.nifti_files import RAS_FROM_LPS
from tests.helpers.prepare_runs import NAMES, read_stack

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct"
CHAOS, TOTAL, GREY = REAL / "chaos", REAL / "totalsegmentator", REAL / "rsna_processed" / "19_14374.nii.gz"
pytestmark = pytest.mark.skipif(not CHAOS.is_dir(), reason="no real CT in ../shared/data/ct")


@pytest.fixture(scope="module")
def chaos():
    return scan_series(CHAOS / "dicom")


def liver_mask(chaos, index):
    """(rows, cols) bool of a slice; masks are in the order of the DICOM files."""
    files = sorted(path.name for path in (CHAOS / "dicom").iterdir())
    path = sorted((CHAOS / "liver_mask").glob("*.png"))[files.index(chaos.source(index))]
    return chaos.grid.orient(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0)


def affine_ras(chaos):
    """From column, row and slice of the series to RAS."""
    first, last = chaos.plane(0), chaos.plane(len(chaos.z_mm) - 1)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 3] = first.col_step, first.row_step, first.origin
    affine[:3, 2] = (last.origin - first.origin) / (len(chaos.z_mm) - 1)
    return RAS_FROM_LPS @ affine


def test_read_gives_the_known_hu_of_a_liver(chaos):
    liver = np.stack([liver_mask(chaos, index) for index in range(len(chaos.z_mm))])
    assert read_volume(chaos)[liver].mean() == pytest.approx(141, abs=1)


def test_read_grey_slices_is_the_same_for_nifti_and_dicom(tmp_path, chaos):
    """The volume has its slices along the second axis."""
    image = nib.Nifti1Image(read_volume(chaos).transpose(2, 1, 0), affine_ras(chaos))
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("PSR"))
    nib.save(image.as_reoriented(turn), tmp_path / "ct.nii.gz")
    with open_nifti(LocalFile(tmp_path / "ct.nii.gz")) as volume:
        both = [examine(series) for series in (volume, chaos)]
        assert both[0].crop == both[1].crop
        np.testing.assert_allclose(np.diff(volume.z_mm), np.diff(chaos.z_mm), atol=1e-3)
        every, windows = range(len(chaos.z_mm)), get_windows(NAMES)
        ours, theirs = (read_grey_slices(examined, every, windows, 256) for examined in both)
        for (_, one), (_, other) in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_prepare_series_of_a_real_abdomen(tmp_path, chaos):
    liver = np.stack([liver_mask(chaos, index) for index in range(len(chaos.z_mm))])
    volume = nib.Nifti1Image(liver.transpose(2, 1, 0).astype(np.uint8), affine_ras(chaos))
    nib.save(nib.as_closest_canonical(volume), tmp_path / "1.nii")
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


def test_open_nifti_of_a_published_8_bit_volume(tmp_path):
    """Its affine is the identity, which is refused; with another one its grey levels are kept."""
    with pytest.raises(SeriesError, match="the identity"), open_nifti(LocalFile(GREY), WINDOWS["soft"]):
        pass
    stored = np.asarray(nib.load(GREY).dataobj)
    affine = np.array([[0, -1.5, 0, 200], [-1.5, 0, 0, 200], [0, 0, 5.0, -300], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "1.nii")
    with open_nifti(LocalFile(tmp_path / "1.nii"), WINDOWS["soft"]) as series:
        first = series.read(0)
        np.testing.assert_array_equal(WINDOWS["soft"].grey(first), stored[:, :, -1])
        assert first.dtype == np.float32 and series.source_window == WINDOWS["soft"]


def test_sample_of_totalsegmentators_organs():
    segmentation = LocalFile(TOTAL / "example_seg_fast_force_split.nii.gz")
    ids = read_mask_ids(Path("configs/masks/totalsegmentator.yaml"))
    with (
        open_nifti(LocalFile(TOTAL / "example_ct.nii.gz")) as series,
        LabelVolume.open(segmentation, ids) as volume,
    ):
        hu = read_volume(series)
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
