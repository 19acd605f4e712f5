"""The picture of labels and predictions shows what the tensors hold, where they hold it."""

import numpy as np
import pytest
import torch

from src.report.voco_pictures import CELL_PX, VOLUMES, crop_places, draw_predictions
from src.voco.crops import CropGrid, overlap_labels
from src.voco.dataset import VolumeSample

FLAT, HIGH = (1, 3, 3), (2, 3, 3)
GREEN, RED, ORANGE = (0, 190, 80), (230, 30, 60), (255, 140, 0)


def draw_batch(grid, volumes=1, crops=1, seed=0):
    """Volumes whose crops are grey by their number, seven slices of which the middle one is brighter."""
    cells = CropGrid((grid[0] * 8, grid[1] * 16, grid[2] * 16), grid)
    rng = np.random.default_rng(seed)
    bases = cells.base_starts()
    labels = [
        overlap_labels(cells.random_starts(rng, crops), bases, cells.crop) for _ in range(volumes)
    ]  # B of (R, N)
    tiles = torch.zeros(volumes, crops + len(bases), 7, 16, 16, 2, dtype=torch.uint8)
    tiles[:, :, 3, ..., 0] = (20 + 5 * torch.arange(crops + len(bases))).view(1, -1, 1, 1).to(torch.uint8)
    return VolumeSample(tiles, torch.from_numpy(np.stack(labels)), torch.arange(volumes) + 30)


def panels(picture, grid, crop=0, crops=1):
    """The four panels of a row of the picture, without captions and margins."""
    height = len(picture) // crops
    row = picture[crop * height : (crop + 1) * height]
    side, wide = CELL_PX * grid[1], grid[0] * CELL_PX * grid[2] + (grid[0] - 1) * 8
    parts, left = [], 0
    for width in (side, wide, wide, wide):
        parts.append(row[height - 8 - side : height - 8, left + 8 : left + 8 + width])
        left += width + 16
    assert left == row.shape[1]
    return parts


def cell_greys(panel, grid):
    """The grey of each cell, read beside its number and inside its frame: (N,)."""
    stride = CELL_PX * grid[2] + 8
    return np.array(
        [panel[y * CELL_PX + 10, z * stride + x * CELL_PX + 10].mean() for z, y, x in np.ndindex(*grid)]
    )


def has_colour(image, colour):
    return bool((image == np.uint8(colour)).all(-1).any())


@pytest.mark.parametrize("grid", [FLAT, HIGH])
def test_draw_predictions_shades_label_and_similarity(grid):
    batch = draw_batch(grid)
    similarity = torch.rand(batch.label.shape, generator=torch.Generator().manual_seed(1))
    _, _, label, predicted = panels(draw_predictions(batch, similarity, grid), grid)
    np.testing.assert_allclose(cell_greys(label, grid), 255 * batch.label[0, 0], atol=0.51)
    np.testing.assert_allclose(cell_greys(predicted, grid), 255 * similarity[0, 0], atol=0.51)
    assert cell_greys(label, grid).argmax() == batch.label[0, 0].argmax()


@pytest.mark.parametrize("grid", [FLAT, HIGH])
def test_draw_predictions_shows_the_middle_slice_in_the_first_window(grid):
    batch = draw_batch(grid)
    crop, canvas, _, _ = panels(draw_predictions(batch, batch.label, grid), grid)
    assert (crop == 20).all()
    shown = cell_greys(canvas, grid)
    outlined = (shown < 20) | (shown > 20 + 5 * len(shown))  # the outline may run through a cell's corner
    np.testing.assert_array_equal(shown[~outlined], (25 + 5 * np.arange(len(shown)))[~outlined])


def test_draw_predictions_shows_the_requested_channel():
    batch = draw_batch(FLAT)
    other = batch._replace(tiles=torch.cat([torch.zeros_like(batch.tiles), batch.tiles], dim=-1))
    channel = batch.tiles.shape[-1]
    picture = draw_predictions(other, batch.label, FLAT, channel)
    np.testing.assert_array_equal(picture, draw_predictions(batch, batch.label, FLAT))


def test_draw_predictions_outlines_the_place_of_the_crop():
    grid = CropGrid((32, 96, 96), HIGH)
    starts = grid.random_starts(np.random.default_rng(0), 200)
    labels = overlap_labels(starts, grid.base_starts(), grid.crop)
    np.testing.assert_allclose(crop_places(labels, HIGH) * grid.crop, starts, atol=1e-4)

    label = overlap_labels([[4, 16, 48]], grid.base_starts(), grid.crop)  # a quarter of a crop from the head
    batch = draw_batch(HIGH)._replace(label=torch.from_numpy(label)[None])
    canvas = panels(draw_predictions(batch, batch.label, HIGH), HIGH)[1]
    rows, columns = np.nonzero((canvas[:, : CELL_PX * 3] == np.uint8(ORANGE)).all(-1))
    first = np.array([rows.min(), columns.min()]) / CELL_PX
    last = np.array([rows.max(), columns.max()]) / CELL_PX
    np.testing.assert_allclose(first, [0.5, 1.5], atol=0.03)
    np.testing.assert_allclose(last, [1.5, 2.5], atol=0.03)


def test_draw_predictions_outlines_only_planes_of_the_crop():
    grid = CropGrid((32, 96, 96), HIGH)
    label = overlap_labels([[0, 16, 48]], grid.base_starts(), grid.crop)
    batch = draw_batch(HIGH)._replace(label=torch.from_numpy(label)[None])
    canvas = panels(draw_predictions(batch, batch.label, HIGH), HIGH)[1]
    assert has_colour(canvas[:, : CELL_PX * 3], ORANGE) and not has_colour(canvas[:, CELL_PX * 3 :], ORANGE)


def test_draw_predictions_frames_right_and_wrong_bases():
    batch = draw_batch(FLAT, crops=2)
    similarity = batch.label.clone()
    similarity[0, 1] = 0.2
    similarity[0, 1, batch.label[0, 1].argmin()] = 0.6
    picture = draw_predictions(batch, similarity, FLAT)
    for crop, (shown, absent) in enumerate([(GREEN, RED), (RED, GREEN)]):
        panel = panels(picture, FLAT, crop, crops=2)[3]
        assert has_colour(panel, shown) and not has_colour(panel, absent)
        y, x = divmod(int(similarity[0, crop].argmax()), 3)
        cell = panel[y * CELL_PX : (y + 1) * CELL_PX, x * CELL_PX : (x + 1) * CELL_PX]
        assert has_colour(cell, shown)
        cell[:] = 0
        assert not has_colour(panel, shown), "no other cell is framed"


def test_draw_predictions_has_one_row_per_crop():
    batch = draw_batch(FLAT, volumes=VOLUMES + 2, crops=2)
    one = draw_predictions(draw_batch(FLAT), draw_batch(FLAT).label, FLAT)
    whole = draw_predictions(batch, batch.label, FLAT)
    assert whole.dtype == np.uint8 and whole.shape == (VOLUMES * 2 * len(one), one.shape[1], 3)


def test_draw_predictions_takes_negative_and_half_precision_similarities():
    batch = draw_batch(FLAT)
    similarity = torch.full_like(batch.label, -0.5)
    panel = panels(draw_predictions(batch, similarity.bfloat16(), FLAT), FLAT)[3]
    assert cell_greys(panel, FLAT).max() == 0
