"""From DICOM and NIfTI to a prepared series: same greys on disk and in memory, one crop, masks in place."""

import nibabel as nib
import numpy as np
import pytest

from src.ct.dicom_series import scan_series
from src.ct.geometry import Plane
from src.ct.series import SeriesError, SeriesSource
from src.ct.storage import LocalFile, LocalFolder
from src.ct.windows import WINDOWS, get_windows
from src.data.png import read_png
from src.data.prepared import image_folder, mask_folder
from src.data.selection import even_indices
from src.prepare import grey_stack
from src.prepare.grey_slices import Crop, body_crop
from src.prepare.write_series import PrepareJob, prepare_series
from tests.helpers.dicom_files import PIXEL_MM, SIDE, hu_at, write_series, write_slice

NAMES = ("soft", "organ", "wide")
FLIPPED = {"along_cols": (0, -1, 0), "along_rows": (-1, 0, 0)}


def source_of(folder, segmentation=None):
    labels = LocalFile(segmentation) if segmentation else None
    return SeriesSource("1", "2", LocalFolder(folder), labels)


def load_stack(folder, windows, size, count=None):
    choose = None if count is None else lambda z_mm: even_indices(len(z_mm), count)
    return grey_stack.load_stack(source_of(folder), get_windows(windows), size, choose)


def prepare(folder, output, segmentation=None, size=48):
    source = source_of(folder, segmentation)
    outcome = prepare_series(source, PrepareJob(output, get_windows(NAMES), size))
    images = sorted(image_folder(output, "1", "2").glob("*.png"))
    return outcome, np.stack([read_png(path) for path in images])


def test_load_stack_equals_prepare_series(tmp_path):
    folder = write_series(tmp_path / "s", rle=True, bits_stored=12, dirty_bits=0x7000, **FLIPPED)
    outcome, written = prepare(folder, tmp_path / "out")
    stack = load_stack(folder, NAMES, 48)
    np.testing.assert_array_equal(stack.images, written)
    few = load_stack(folder, NAMES, 48, count=5)
    assert few.indices.tolist() == [1, 3, 6, 8, 10]
    np.testing.assert_array_equal(few.images, written[few.indices])
    assert few.table["instance_number"].tolist() == [11, 9, 6, 4, 2]
    assert stack.pixel_mm == few.pixel_mm == outcome["row"]["pixel_mm"]
    assert stack.table["instance_number"].tolist() == list(range(12, 0, -1))


def test_find_body_gives_a_square_that_holds_the_body(tmp_path):
    folder = write_series(tmp_path / "s", shift_mm=(20, 0, 0))
    outcome, images = prepare(folder, tmp_path / "out")
    row = outcome["row"]
    assert 200 <= row["crop_width"] * PIXEL_MM <= 200 + 2 * 12 + 2 * PIXEL_MM  # the body is 200 mm wide
    assert row["crop_width"] == row["crop_height"]
    assert row["pixel_mm"] == pytest.approx(row["crop_width"] * PIXEL_MM / 48)
    body = (images[..., 0] > 0).any(axis=(0, 1))  # columns that show anything
    assert abs(np.flatnonzero(body).mean() - 23.5) < 1  # centred, although the field of view is not


def test_body_crop_excludes_the_table():
    hu = np.full((100, 60), -1000, dtype=np.int16)
    hu[20:60, 15:45] = 40  # body: 40 x 2 mm high, 30 x 4 mm wide
    hu[75:79, 5:55] = 300  # table: 8 mm thick and wider than the body
    crop = body_crop([hu], (2.0, 4.0), hu.shape)
    assert crop.width * 4.0 == pytest.approx(crop.height * 2.0, abs=4)
    assert crop.width * 4.0 == pytest.approx(120 + 12, abs=12)
    assert crop.top + crop.height / 2 == pytest.approx(40, abs=3)


def test_plane_of_a_crop():
    source = Plane(np.zeros(3), row_step=np.array([0, 2.0, 0]), col_step=np.array([1.0, 0, 0]))
    plane = Crop(left=-2, top=4, width=8, height=8).plane(
        source, size=2
    )  # a pixel covers 4 x 4 source pixels
    np.testing.assert_allclose(plane.origin, [-2 + 1.5, 2 * (4 + 1.5), 0])
    np.testing.assert_allclose([plane.col_step[0], plane.row_step[1]], [4, 8])


def test_load_stack_shows_air_outside_the_image(tmp_path):
    hu = np.full((SIDE, SIDE), 40)
    write_slice(tmp_path / "s" / "1.dcm", hu)
    images = load_stack(tmp_path / "s", ("wide",), SIDE).images
    assert images.shape == (1, SIDE, SIDE, 1)
    grey = int(WINDOWS["wide"].grey(np.array(40)))
    assert set(np.unique(images[0, 3:-3, 3:-3])) == {grey}
    assert not images[0, 0].any()
    assert not images[0, :, -1].any()


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SRP", "AIL"])
def test_prepare_series_places_masks_for_any_voxel_axes(tmp_path, axes):
    folder = write_series(tmp_path / "s", **FLIPPED)
    label_path = write_liver_label(tmp_path / "2.nii.gz", axes)
    _, images = prepare(folder, tmp_path / "out", label_path, size=SIDE)
    masks = np.stack(
        [read_png(path) for path in sorted(mask_folder(tmp_path / "out", "1", "2").glob("*.png"))]
    )
    assert masks.shape == images.shape[:3]
    liver = images[..., 1] == WINDOWS["organ"].grey(np.array(120))
    agreement = 2 * (liver & (masks == 1)).sum() / (liver.sum() + (masks == 1).sum())
    assert agreement > 0.9
    assert set(np.unique(masks)) == {0, 1}


def write_liver_label(path, axes):
    """The liver of `hu_at` on a 3 mm grid of its own, whose voxel axes run towards `axes`."""
    directions = {
        "L": (1, 0, 0),
        "R": (-1, 0, 0),
        "P": (0, 1, 0),
        "A": (0, -1, 0),
        "S": (0, 0, 1),
        "I": (0, 0, -1),
    }
    affine = np.eye(4)
    affine[:3, :3] = 3.0 * np.array([directions[axis] for axis in axes]).T
    shape = (70, 70, 70)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    ras_from_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    nib.save(nib.Nifti1Image((hu_at(x, y, z) == 120).astype(np.uint8), ras_from_lps @ affine), path)
    return path


def test_prepare_series_reports_slices_that_cannot_be_decoded(tmp_path):
    folder = write_series(tmp_path / "s", n_slices=6, rle=True)
    broken = folder / "3.dcm"
    broken.write_bytes(broken.read_bytes()[:1200])
    outcome, images = prepare(folder, tmp_path / "out")
    assert len(images) == outcome["row"]["slices"] == 5
    assert [item["source"] for item in outcome["rejected"]] == ["3.dcm"]
    few = load_stack(folder, NAMES, 48, count=6)
    assert few.indices.tolist() == list(range(6))
    assert "3.dcm" not in few.table["source"].tolist()
    every = load_stack(folder, NAMES, 48)
    np.testing.assert_array_equal(every.images, images)
    assert every.table["z_mm"].tolist() == every.z_mm.tolist() and len(every.z_mm) == 5


def test_prepare_series_with_a_damaged_segmentation(tmp_path):
    folder = write_series(tmp_path / "s", n_slices=3)
    (tmp_path / "2.nii").write_bytes(b"not nifti")
    outcome, images = prepare(folder, tmp_path / "out", tmp_path / "2.nii")
    assert len(images) == 3
    assert not outcome["row"]["masks"]
    assert "segmentation cannot be read" in outcome["row"]["reason"]


def test_prepare_series_reports_a_segmentation_that_lies_elsewhere(tmp_path):
    folder = write_series(tmp_path / "s", n_slices=3)
    far_away = np.eye(4)
    far_away[:3, 3] = 5000
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), far_away), tmp_path / "2.nii")
    outcome, images = prepare(folder, tmp_path / "out", tmp_path / "2.nii")
    assert len(images) == 3 and not outcome["row"]["masks"]
    assert "lies on the slices" in outcome["row"]["reason"]
    assert not (tmp_path / "out" / "masks" / "1" / "2").exists()


def test_prepare_series_leaves_nothing_after_an_error(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "1.dcm").write_bytes(b"junk")
    with pytest.raises(SeriesError, match="no usable file"):
        prepare(tmp_path / "s", tmp_path / "out")
    assert list((tmp_path / "out").rglob("*.png")) == []
    assert list((tmp_path / "out" / "images" / "1").iterdir()) == []


def test_load_stack_keeps_a_partly_black_slice(tmp_path):
    folder = write_series(tmp_path / "s", n_slices=4)
    hu = np.full((SIDE, SIDE), -1000)
    hu[20:40, 20:44] = 40
    hu[:, :30] = -1024
    write_slice(
        folder / "5.dcm",
        hu,
        position_mm=scan_series(LocalFolder(folder).list()).plane(0).origin + np.array([0, 0, 5]),
    )
    assert len(load_stack(folder, NAMES, 48).images) == 5
