"""Real CT, where there is some beside the repository: orientation, Hounsfield units, masks in place."""

from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest

from src.data.dicom import read_hu
from src.data.prepare import PrepareJob, prepare_series
from src.data.rsna import SeriesSource
from src.data.series import scan_series
from src.data.stack import image_folder, mask_folder, read_png
from src.data.windows import get_windows

CHAOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "ct" / "chaos"
pytestmark = pytest.mark.skipif(not CHAOS.is_dir(), reason="no real CT in ../shared/data/ct/chaos")


@pytest.fixture(scope="module")
def liver_masks():
    """(slices, rows, cols) bool, in the order of the DICOM files."""
    paths = sorted((CHAOS / "liver_mask").glob("*.png"))
    return np.stack([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0 for path in paths])


def test_the_liver_has_its_known_mean_hu(liver_masks):
    series = scan_series(CHAOS / "dicom")
    files = sorted(path.name for path in (CHAOS / "dicom").iterdir())
    values = [
        series.orient(read_hu(header))[series.orient(liver_masks[files.index(header.path.name)])]
        for header in series.headers
    ]
    assert np.concatenate(values).mean() == pytest.approx(141, abs=1)


def test_prepared_slices_are_upright_and_masks_lie_on_the_liver(tmp_path, liver_masks):
    series = scan_series(CHAOS / "dicom")
    affine_lps = np.eye(4)
    first, last = series.plane(0), series.plane(len(series) - 1)
    affine_lps[:3, 0], affine_lps[:3, 1] = first.col_step, first.row_step
    affine_lps[:3, 2] = (last.origin - first.origin) / (len(series) - 1)
    affine_lps[:3, 3] = first.origin
    volume = liver_masks.transpose(2, 1, 0).astype(np.uint8)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps
    turned = nib.as_closest_canonical(nib.Nifti1Image(volume, affine))
    nib.save(turned, tmp_path / "1.nii")
    job = PrepareJob(tmp_path / "out", get_windows(("soft",)), 256)
    prepare_series(SeriesSource("1", "1", CHAOS / "dicom", tmp_path / "1.nii"), job)

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


def read_stack(folder):
    return np.stack([read_png(path) for path in sorted(folder.glob("*.png"))])
