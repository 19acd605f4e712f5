"""The canvas shows the slices and the pixels that its extent says, in shares of the series or in mm."""

from pathlib import Path

import numpy as np
import pytest

from src.core.errors import UserError
from src.data.prepared import image_folder
from src.voco.canvas import find_foreground
from src.voco.dataset import open_dataset
from src.voco.extents import make_extent
from src.voco.index import open_index
from src.voco.options import VocoOptions
from tests.helpers.voco_files import draw_noise, draw_places, write_prepared, write_slice_table

EXTENTS = ("slab", "whole", "box")


def options_of(folder, **changes):
    small = {"canvas": 12, "depth": 8, "grid": 3, "tile": 4, "slices": 4, "foreground": 0.0}
    return VocoOptions(data=(folder,), output=Path("unused"), **small | changes)


def choose_slices(options, seeds):
    """(seeds, depth)"""
    series, extent = open_index(options).series(0), make_extent(options)
    return np.stack([extent.choose_slices(series, np.random.default_rng(seed)) for seed in range(seeds)])


@pytest.fixture(scope="module")
def places_set(tmp_path_factory):
    """48 x 48 pixels of 2 mm, 20 slices of 5 mm."""
    return write_prepared(tmp_path_factory.mktemp("places") / "set", draw_places, series=2, slices=20)


def test_slab_extent_is_consecutive_slices_anywhere(places_set):
    slabs = choose_slices(options_of(places_set), 200)
    assert (np.diff(slabs, axis=1) == 1).all()
    assert set(slabs[:, 0]) == set(range(13))  # places of 8 among 20


def test_whole_extent_is_even_steps(places_set):
    slices = choose_slices(options_of(places_set, extent="whole", depth=10), 3)
    assert (slices == np.arange(1, 20, 2)).all()


def test_slab_extent_stretches_a_short_series(places_set):
    slabs = choose_slices(options_of(places_set, depth=40), 5)
    assert (slabs == np.repeat(np.arange(20), 2)).all()


def test_box_extent_has_its_depth_in_mm(places_set):
    boxes = choose_slices(options_of(places_set, extent="box", spacing_mm=5.0), 200)
    assert (np.diff(boxes, axis=1) == 1).all()
    assert set(boxes[:, 0]) == set(range(20 - 7))
    coarse = choose_slices(options_of(places_set, extent="box", spacing_mm=10.0), 200)
    assert (np.diff(coarse, axis=1) == 2).all()  # 10 mm are two slices
    fine = choose_slices(options_of(places_set, extent="box", spacing_mm=2.5), 200)
    assert (fine[:, 2:] - fine[:, :-2] == 1).all() and fine.min() == 0 and fine.max() == 19


def test_box_extent_uses_the_positions_of_the_slices(tmp_path):
    folder = write_prepared(tmp_path / "set", draw_places, series=1, slices=6)
    gap_mm = -np.array([0, 5, 10, 40, 45, 50.0])
    write_slice_table(image_folder(folder, "10", "100"), gap_mm)
    box = choose_slices(options_of(folder, extent="box", depth=11, spacing_mm=5.0), 1)[0]
    assert box.tolist() == [0, 1, 2, 2, 2, 2, 3, 3, 3, 4, 5]


def test_box_extent_repeats_the_end_slices(tmp_path):
    folder = write_prepared(tmp_path / "set", draw_places, series=1, slices=3)
    boxes = choose_slices(options_of(folder, extent="box", depth=12, spacing_mm=5.0), 100)
    middles = {tuple(np.bincount(box, minlength=3)) for box in boxes}
    assert all(counts[1] == 1 for counts in middles) and len(middles) > 5
    assert (np.diff(boxes, axis=1) >= 0).all()


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("extent", EXTENTS)
def test_every_extent_takes_a_short_series(tmp_path, extent, slices):
    folder = write_prepared(tmp_path / "set", draw_noise, series=1, slices=slices)
    options = options_of(folder, extent=extent, grid_z=2, foreground=0.3, windows=("wide", "soft"))
    dataset = open_dataset(options)
    for epoch in range(5):
        sample = dataset[epoch, 0]
        assert sample.tiles.shape == (2 + 18, 4, 4, 4, 2) and sample.tiles.float().std() > 0
        np.testing.assert_allclose(sample.label.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize(("spacing_mm", "side", "crop"), [(4.0, 24, 4), (1.0, 48, 2)])
def test_box_extent_has_its_sides_in_mm(places_set, spacing_mm, side, crop):
    """Pixels of 2 mm: coarser voxels are pixels of the planes, finer ones parts of the slices' pixels."""
    options = options_of(places_set, extent="box", windows=("soft", "organ"), spacing_mm=spacing_mm)
    series, extent = open_index(options).series(0), make_extent(options)
    assert extent.plane_side(series) == side
    corners = []
    for seed in range(400):
        grid, corner = extent.choose_canvas(series, np.random.default_rng(seed))
        assert grid.canvas == (8, 3 * crop, 3 * crop) and grid.crop == (8, crop, crop)
        corners.append(corner)
    assert np.min(corners) == 0 and np.max(corners) == side - 3 * crop  # inside the planes
    square = extent.find_rectangle(series).resize(series.read([0])[0], side)
    assert (np.diff(square[..., 0].astype(int), axis=0) == 48 // side).all()  # levels are rows and columns


def test_box_extent_pads_with_black(tmp_path):
    folder = write_prepared(
        tmp_path / "set", lambda series, index: np.full((48, 48, 1), 9, np.uint8), windows=("soft",), series=1
    )
    options = options_of(folder, extent="box", canvas=60, tile=20, spacing_mm=2.0)
    dataset, corners = open_dataset(options), set()
    for epoch in range(20):
        bases = dataset[epoch, 0].tiles[2:, 0, ..., 0].numpy().reshape(3, 3, 20, 20)
        square = bases.transpose(0, 2, 1, 3).reshape(60, 60)
        assert (square == 9).sum() == 48 * 48 and (square == 0).sum() == 60 * 60 - 48 * 48
        corners.add(tuple(np.argwhere(square)[0]))
    assert len(corners) > 10


@pytest.mark.parametrize("windows", [("soft",), ("soft", "organ")])
def test_find_foreground_is_the_smallest_rectangle(windows):
    images = np.full((3, 20, 30, len(windows)), 76, np.uint8)
    images[..., 1:] = 255  # other windows do not count
    images[0, 4, 7, 0] = images[2, 11, 25, 0] = 77  # 0.3 of 255 is 76.5
    found = find_foreground(images, 0.3 * 255)
    assert (found.top, found.left, found.height, found.width) == (4, 7, 8, 19)


def test_find_foreground_of_a_dark_image_is_the_whole_image(places_set):
    found = find_foreground(np.full((2, 20, 30, 1), 76, np.uint8), 76.5)
    assert (found.top, found.left, found.height, found.width) == (0, 0, 20, 30)


def test_planes_are_the_foreground_of_the_series(tmp_path):
    def draw(series, index):
        """A square of 24 pixels, in the middle slice a larger one."""
        image = np.zeros((48, 48, 1), np.uint8)
        image[8:32, 16:40] = 100
        if index == 4:
            image[4:44, 4:44] = 100
        return image

    folder = write_prepared(tmp_path / "set", draw, series=1, slices=8, windows=("soft",))
    for foreground, expected in ((0.3, (4, 4, 40, 40)), (0.0, (0, 0, 48, 48))):
        options = options_of(folder, extent="whole", foreground=foreground)
        found = make_extent(options).find_rectangle(open_index(options).series(0))
        assert (found.top, found.left, found.height, found.width) == expected


def test_jitter_shows_other_slices_and_places_as_bases_at_every_visit(tmp_path):
    """Of a series of 96 slices, in 60 visits; three without."""
    folder = write_prepared(tmp_path / "set", draw_places, series=1, slices=96)
    shape = {"extent": "whole", "canvas": 48, "depth": 96, "tile": 16, "grid_z": 3, "slices": 1}
    shape["windows"] = ("soft", "organ", "wide")
    for jitter, fewest, most in ((0.0, 3, 3), (0.125, 31, 96)):
        dataset = open_dataset(options_of(folder, jitter=jitter, **shape))
        bases = np.stack([dataset[epoch, 0].tiles[2:].numpy() for epoch in range(60)])
        assert fewest <= len(np.unique(bases[..., 2])) <= most
        assert (len(np.unique(bases[:, 0, 0, 0, 0, 0])) > 3) == (jitter > 0)  # rows of the first base


@pytest.mark.parametrize("damage", ["pixel_mm", "slices.csv", "rows"])
def test_box_extent_requires_sizes_in_mm(tmp_path, damage):
    folder = write_prepared(tmp_path / "set", draw_places, series=1, slices=6)
    images, table = image_folder(folder, "10", "100"), folder / "series.csv"
    if damage == "pixel_mm":
        table.write_text(table.read_text().replace(",2.0,", ",,"))
    elif damage == "slices.csv":
        (images / "slices.csv").unlink()
    else:
        write_slice_table(images, -np.arange(5.0))
    with pytest.raises(UserError, match=damage.replace("rows", "does not fit the 6 slices")):
        open_dataset(options_of(folder, extent="box"))[0, 0]
    open_dataset(options_of(folder))[0, 0]
