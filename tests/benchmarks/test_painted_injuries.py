"""Painted injuries on a small volume like a CT: a trunk of fat in a wall of muscle, with a noisy liver."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import painted_injuries
from painted_injuries import KINDS, TARGETS, paint_volume, write_examples
from real_painting import ABDOMEN, Field, Noise, masks_of, scan_of, wall_mask
from real_volumes import BOXES, RealVolume, grow, read_boxes

from src.core.errors import UserError
from src.ct.windows import WINDOWS

PIXEL_MM, SLICE_MM, NOISE_HU, LIVER_HU = 3.0, 5.0, 9.0, 110.0


@pytest.fixture(scope="module")
def volume() -> RealVolume:
    z, y, x = np.mgrid[:24, :96, :96].astype(np.float32)
    across = np.hypot(x - 47.5, y - 47.5) * PIXEL_MM
    hu = np.full(x.shape, -1000, np.float32)
    for radius_mm, tissue_hu in ((132, -100), (124, 55), (108, -100)):
        hu[across < radius_mm] = tissue_hu
    liver = ((x - 42) / 17) ** 2 + ((y - 52) / 14) ** 2 + ((z - 11) / 9) ** 2 < 1
    hu[liver] = LIVER_HU
    grain = Noise(NOISE_HU, 0.7).draw(hu.shape, np.random.default_rng(1))
    hu[across < 132] += grain[across < 132]
    return RealVolume("patient", hu, liver.astype(np.uint8), PIXEL_MM, SLICE_MM)


@pytest.fixture(scope="module")
def examples(volume) -> list[painted_injuries.Example]:
    return list(paint_volume(volume, 3, seed=0))


def changed(example: painted_injuries.Example, kind: str) -> np.ndarray:
    """Difference in grey levels of a kind to the untouched slice."""
    untouched = example.images[KINDS.index("untouched")].astype(int)
    return example.images[KINDS.index(kind)] - untouched


def test_paint_volume_paints_every_target_and_keeps_the_slice(volume, examples):
    assert {example.target for example in examples} == set(TARGETS)
    for example in examples:
        untouched = example.images[KINDS.index("untouched")]
        np.testing.assert_array_equal(untouched, WINDOWS["soft"].grey(volume.hu[example.slice]))
        assert example.organ == (ABDOMEN if example.target == "free_gas" else "liver")


def test_paint_volume_centres_the_injury(examples):
    for example in examples:
        change = np.abs(changed(example, "injury"))
        rows, cols = np.nonzero(change > 0.5 * change.max())
        row, col = np.array(example.centre) * change.shape[0]
        assert np.hypot(rows - row, cols - col).min() < 12


def test_paint_volume_changes_what_each_target_says(volume, examples):
    fat = masks_of(volume)[ABDOMEN]
    for example in examples:
        liver, change = volume.labels[example.slice] == 1, changed(example, "injury")
        if example.target.startswith("laceration"):
            assert change.min() < 0 == change.max() and not change[~liver].any()
        elif example.target == "extravasation":
            assert change.max() > 15
        elif example.target == "free_gas":
            assert change.min() < 0 == change.max() and not change[~fat[example.slice]].any()
        else:  # blood in place of fat, and in the rim of the liver
            assert change[~liver].max() > 50 and change[liver].min() < 0


def test_paint_volume_adds_harmless_edits_to_the_organ(volume, examples):
    for example in examples:
        organ = masks_of(volume)[example.organ][example.slice]
        for kind in ("cyst", "noise", "contrast"):
            change = changed(example, kind)
            assert change.any() and np.abs(change[organ]).sum() > 0.5 * np.abs(change).sum()


def test_paint_volume_gives_new_tissue_the_noise_of_the_series(volume, examples):
    grey_per_hu = 255 / WINDOWS["soft"].width_hu
    noisy = []
    for example in examples:
        cyst, change = example.images[KINDS.index("cyst")], changed(example, "cyst")
        inside = ndimage.binary_erosion(change < -0.6 * LIVER_HU * grey_per_hu)
        if example.organ == "liver" and inside.sum() > 15:
            noisy.append(cyst[inside].std() / grey_per_hu)
    assert len(noisy) > 2 and 0.5 * NOISE_HU < np.mean(noisy) < 1.5 * NOISE_HU


def test_paint_volume_follows_from_the_seed(volume, examples):
    again = list(paint_volume(volume, 3, seed=0))
    other = list(paint_volume(volume, 3, seed=1))
    assert all((a.images == b.images).all() for a, b in zip(examples, again, strict=True))
    assert any((a.images != b.images).any() for a, b in zip(examples, other, strict=False))


def test_paint_volume_needs_a_whole_surface_for_a_haematoma(volume):
    part = dataclasses.replace(volume, whole=())
    assert "haematoma" not in {example.target for example in paint_volume(part, 1, seed=0)}


def test_write_examples_is_read_without_pickles(volume, examples, tmp_path):
    write_examples(tmp_path / "patient.npz", volume, examples)
    with np.load(tmp_path / "patient.npz") as file:
        assert file["images"].shape == (len(examples), len(KINDS), 96, 96)
        assert file["centre"].shape == (len(examples), 2)
        assert file["target"].tolist() == [example.target for example in examples]
        assert file["pixel_mm"] == PIXEL_MM


def test_field_is_the_distance_of_a_ball_between_voxels_too(volume):
    scan = scan_of(volume)
    z, y, x = np.mgrid[:24, :96, :96]
    ball = np.hypot(np.hypot(x - 50, y - 50) * PIXEL_MM, (z - 12) * SLICE_MM) < 30
    field = Field.of_mask(ball, scan)
    x0, y0, _ = scan.first_voxel_mm
    for offset_mm in (0.0, 20.0, 25.7, 40.0):
        at = np.float32([x0 + 50 * PIXEL_MM + offset_mm]), np.float32([y0 + 50 * PIXEL_MM])
        distance = field.sample(*at, np.float32([-12 * SLICE_MM]))
        assert distance[0] == pytest.approx(offset_mm - 30, abs=3.0)


def test_field_takes_the_end_slices_to_go_on(volume):
    cut = np.zeros(volume.hu.shape, bool)
    cut[10:14, 30:60, 30:60] = True
    field = Field.of_mask(cut, scan_of(volume))
    middle = field.sample(np.float32([0.0]), np.float32([0.0]), np.float32([-10 * SLICE_MM]))
    assert middle[0] < -30


def test_noise_measures_its_deviation_and_grain():
    for true in (Noise(12.0, 0.5), Noise(20.0, 1.0)):
        hu = 60 + true.draw((6, 80, 80), np.random.default_rng(3))
        found = Noise.measure(hu, np.ones(hu.shape, bool))
        assert found.deviation_hu == pytest.approx(true.deviation_hu, rel=0.15)
        assert found.sigma_px == pytest.approx(true.sigma_px, rel=0.25)


def test_wall_mask_excludes_subcutaneous_fat(volume):
    wall = wall_mask(volume)[12, 48]
    depth_mm = 132 - np.abs(np.arange(96) - 47.5) * PIXEL_MM
    assert not wall[depth_mm < 15].any() and wall[depth_mm > 40].all()


def box(**changes: object) -> SimpleNamespace:
    values = {"organ": "liver", "first": 2, "last": 20, "top": 0.3, "bottom": 0.8, "left": 0.2, "right": 0.7}
    return SimpleNamespace(**{**values, "low_hu": 70, "high_hu": 150, **changes})


def test_grow_finds_the_organ_of_a_box(volume):
    mask, liver = grow(volume, box()), volume.labels == 1
    assert (mask & ~liver).sum() < 0.02 * liver.sum() and (mask & liver).sum() > 0.8 * liver.sum()


def test_grow_refuses_a_box_without_the_organ(volume):
    with pytest.raises(UserError, match="no liver in its box"):
        grow(volume, box(low_hu=300, high_hu=400))


def test_read_boxes_reads_the_committed_table():
    table = read_boxes(BOXES)
    assert (table["first"] < table["last"]).all() and (table["low_hu"] < table["high_hu"]).all()
    assert (table["top"] < table["bottom"]).all() and (table["left"] < table["right"]).all()
    assert not table.duplicated(["patient", "organ"]).any() and table["note"].notna().all()


def test_read_boxes_refuses_an_unknown_organ(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text(BOXES.read_text().replace(",spleen,", ",splen,"))
    with pytest.raises(UserError, match="unknown organ splen"):
        read_boxes(path)
