"""Real CT, where there is some beside the repository: orientation, Hounsfield units, masks in place."""

from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from src.core.targets import ORGANS
from src.ct.label_volume import LabelVolume, read_mask_ids
from src.ct.nifti import open_nifti
from src.ct.storage import LocalFile
from src.ct.windows import get_windows
from src.prepare.grey_slices import find_body, read_grey_slices
from tests.helpers.dicom_files import read_volume, scan_series
from tests.helpers.nifti_files import RAS_FROM_LPS
from tests.helpers.prepare_runs import NAMES

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct"
CHAOS, TOTAL = REAL / "chaos", REAL / "totalsegmentator"
pytestmark = pytest.mark.skipif(not CHAOS.is_dir(), reason="no real CT in ../shared/data/ct")


@pytest.fixture(scope="module")
def chaos():
    return scan_series(CHAOS / "dicom")


def test_read_gives_the_known_hu_of_a_liver(chaos):
    masks = {path.stem: path for path in (CHAOS / "liver_mask").glob("*.png")}
    masks = [cv2.imread(str(masks[stem]), cv2.IMREAD_GRAYSCALE) > 0 for stem in sorted(masks)]
    files = sorted(path.name for path in (CHAOS / "dicom").iterdir())
    liver = [chaos.grid.orient(masks[files.index(chaos.source(index))]) for index in range(len(files))]
    assert read_volume(chaos)[np.stack(liver)].mean() == pytest.approx(141, abs=1)


def test_read_grey_slices_is_the_same_for_nifti_and_dicom(tmp_path, chaos):
    """The volume has its slices along the second axis."""
    first, last = chaos.plane(0), chaos.plane(len(chaos.z_mm) - 1)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 3] = first.col_step, first.row_step, first.origin
    affine[:3, 2] = (last.origin - first.origin) / (len(chaos.z_mm) - 1)
    image = nib.Nifti1Image(read_volume(chaos).transpose(2, 1, 0), RAS_FROM_LPS @ affine)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("PSR"))
    nib.save(image.as_reoriented(turn), tmp_path / "ct.nii.gz")
    with open_nifti(LocalFile(tmp_path / "ct.nii.gz")) as volume:
        crop, _ = find_body(volume)
        assert crop == find_body(chaos)[0]
        np.testing.assert_allclose(np.diff(volume.z_mm), np.diff(chaos.z_mm), atol=1e-3)
        every, windows = range(len(chaos.z_mm)), get_windows(NAMES)
        ours, theirs = (read_grey_slices(one, every, crop, windows, 256) for one in (volume, chaos))
        for (_, one), (_, other) in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


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
