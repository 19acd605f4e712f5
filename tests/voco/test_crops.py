"""Position labels are the share of pixels that crops share, in any dimensions; views are parts of crops."""

import numpy as np
import pytest

from src.voco.crops import CropGrid, CropPlaces, draw_views, overlap_labels

GRIDS = [
    CropGrid((12, 12), (3, 3)),
    CropGrid((8, 18), (2, 3)),
    CropGrid((6, 8, 9), (2, 2, 3)),
    CropGrid((8, 12, 12), (1, 3, 3)),
]


def count_shared_pixels(first_start, second_start, crop, canvas):
    masks = np.zeros((2, *canvas), bool)
    for mask, start in zip(masks, (first_start, second_start), strict=True):
        mask[tuple(slice(s, s + c) for s, c in zip(start, crop, strict=True))] = True
    return int((masks[0] & masks[1]).sum())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_overlap_labels_equal_pixel_counts(grid):
    randoms = grid.random_starts(np.random.default_rng(0), 50)
    bases = grid.base_starts()
    labels = overlap_labels(randoms, bases, grid.crop)
    counted = [[count_shared_pixels(r, b, grid.crop, grid.canvas) for b in bases] for r in randoms]
    np.testing.assert_allclose(labels, np.array(counted) / np.prod(grid.crop), atol=1e-7)
    assert labels.dtype == np.float32


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_base_starts_cover_every_pixel_once(grid):
    covered = np.zeros(grid.canvas, int)
    for start in grid.base_starts():
        covered[tuple(slice(s, s + c) for s, c in zip(start, grid.crop, strict=True))] += 1
    assert (covered == 1).all()


def test_random_starts_are_uniform():
    grid = CropGrid((6, 9), (2, 3))  # crops of 3 x 3: rows 0..3, columns 0..6
    starts = grid.random_starts(np.random.default_rng(2), 28_000)
    counts = np.zeros((4, 7), int)
    np.add.at(counts, tuple(starts.T), 1)
    assert counts.sum() == 28_000
    assert abs(counts - 1000).max() < 150  # five standard deviations


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_random_part_is_a_smaller_grid_inside(grid):
    parts = set()
    for seed in range(100):
        part, first = grid.random_part(np.random.default_rng(seed), 0.4)
        ends = first + part.canvas
        assert part.grid == grid.grid and (first >= 0).all() and (ends <= grid.canvas).all()
        assert (np.array(part.crop) >= 0.6 * np.array(grid.crop)).all()
        parts.add((part, *first))
    assert len(parts) > 10
    whole, first = grid.random_part(np.random.default_rng(0), 0.0)
    assert whole == grid and not first.any()


def test_crop_grid_refuses_uneven_sizes():
    with pytest.raises(ValueError, match="cannot be cut"):
        CropGrid((100, 100), (3, 3))


@pytest.fixture
def crops():
    """2001 crops of 48 x 60 pixels, whose depths are their numbers."""
    numbers = np.arange(2001)
    corners = np.stack([numbers, -numbers], axis=1)
    depths = np.stack([numbers, numbers], axis=1)
    return CropPlaces(depths, depths + 5000, corners, np.tile([48, 60], (2001, 1)), np.zeros(2001, bool))


def test_draw_views_draws_two_parts_of_half_of_the_crops(crops):
    views = draw_views(crops, 0.3, np.random.default_rng(0))
    number = views.depths[:, 0]
    assert np.array_equal(number[:1000], number[1000:]) and len(set(number)) == 1000
    assert np.array_equal(views.depths, crops.depths[number])
    assert np.array_equal(views.slices, crops.slices[number])
    offset = views.corners - crops.corners[number]
    assert (offset >= 0).all() and (offset + views.sides <= [48, 60]).all()
    assert (np.abs(offset[:1000] - offset[1000:]).max(axis=1) > 0).mean() > 0.9
    assert 900 < views.is_mirrored.sum() < 1100


def test_draw_views_shows_areas_and_shapes_evenly(crops):
    views = draw_views(crops, 0.3, np.random.default_rng(0))
    height, width = (views.sides / [48, 60]).T
    area, is_inside = height * width, np.maximum(height, width) < 0.98
    assert 0.26 < area.min() < 0.34 and area.max() > 0.9 and abs(np.median(area) - 0.65) < 0.05
    ratio = np.log(height[is_inside] / width[is_inside])
    assert abs(ratio).max() < np.log(4 / 3) + 0.05 and abs(ratio.mean()) < 0.02
    whole = draw_views(crops, 1.0, np.random.default_rng(0))
    assert whole.sides.max(axis=1).mean() > 55  # one side is whole


def test_draw_views_keeps_a_pixel(crops):
    tiny = crops._replace(sides=np.ones((2001, 2), dtype=np.int64))
    views = draw_views(tiny, 0.01, np.random.default_rng(0))
    assert (views.sides == 1).all()
