"""Position labels are the share of pixels that crops share, in any number of dimensions."""

import numpy as np
import pytest

from src.voco.crops import CropGrid, cut_crops, overlap_labels

GRIDS = [CropGrid((12, 12), (3, 3)), CropGrid((8, 18), (2, 3)), CropGrid((6, 8, 9), (2, 2, 3))]


def count_shared_pixels(first_start, second_start, crop, canvas):
    masks = np.zeros((2, *canvas), bool)
    for mask, start in zip(masks, (first_start, second_start), strict=True):
        mask[tuple(slice(s, s + c) for s, c in zip(start, crop, strict=True))] = True
    return int((masks[0] & masks[1]).sum())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_labels_equal_brute_force_pixel_counts(grid):
    randoms = grid.random_starts(np.random.default_rng(0), 50)
    bases = grid.base_starts()
    labels = overlap_labels(randoms, bases, grid.crop)
    counted = [[count_shared_pixels(r, b, grid.crop, grid.canvas) for b in bases] for r in randoms]
    np.testing.assert_allclose(labels, np.array(counted) / np.prod(grid.crop), atol=1e-7)
    assert labels.dtype == np.float32


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_row_of_labels_sums_to_one(grid):
    randoms = grid.random_starts(np.random.default_rng(1), 500)
    np.testing.assert_allclose(overlap_labels(randoms, grid.base_starts(), grid.crop).sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_base_crops_cover_every_pixel_once(grid):
    covered = np.zeros(grid.canvas, int)
    for start in grid.base_starts():
        covered[tuple(slice(s, s + c) for s, c in zip(start, grid.crop, strict=True))] += 1
    assert (covered == 1).all()


def test_random_starts_are_uniform_over_all_positions_inside():
    grid = CropGrid((6, 9), (2, 3))  # crops of 3 x 3: rows 0..3, columns 0..6
    starts = grid.random_starts(np.random.default_rng(2), 28_000)
    counts = np.zeros((4, 7), int)
    np.add.at(counts, tuple(starts.T), 1)
    assert counts.sum() == 28_000
    assert abs(counts - 1000).max() < 150  # five standard deviations


def test_an_uneven_grid_is_refused():
    with pytest.raises(ValueError, match="cannot be cut"):
        CropGrid((100, 100), (3, 3))


def test_cut_crops_takes_the_same_place_of_every_slice():
    images = np.arange(2 * 6 * 6).reshape(2, 6, 6, 1)
    tiles = cut_crops(images, np.array([[0, 0], [2, 3]]), (3, 3))
    assert tiles.shape == (2, 2, 3, 3, 1)
    np.testing.assert_array_equal(tiles[1, 1], images[1, 2:5, 3:6])
