"""Samples: the slices, crops and labels that the draws say, the same wherever and whenever they are made."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from src.core.errors import UserError
from src.data.png import read_png
from src.data.prepared import image_folder, slice_name
from src.nn.loading import StackLoader
from src.voco.crops import overlap_labels
from src.voco.dataset import MAX_HEIGHTS, CropChanges, VolumeSample, open_dataset
from src.voco.options import VocoOptions
from src.voco.order import VolumeOrder
from tests.helpers.voco_files import draw_indices, draw_noise, draw_places, write_prepared

SMALL = {
    "windows": ("soft", "organ", "wide"),
    "canvas": 48,
    "depth": 8,
    "tile": 16,
    "slices": 4,
    "foreground": 0.0,
}
OFF = {"flip": 0.0, "rotate90": 0.0, "shift": 0.0}


def open_sets(*folders, **changes):
    return open_dataset(
        VocoOptions(data=tuple(map(str, folders)), output=Path("unused"), batch=2, **SMALL | changes)
    )


def same(first: VolumeSample, second: VolumeSample) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def indices_set(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("indices") / "set", draw_indices, series=5, slices=20)


@pytest.fixture(scope="module")
def places_set(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("places") / "set", draw_places, series=3, slices=12)


@pytest.fixture(scope="module")
def noise_set(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("noise") / "set", draw_noise, series=2, slices=12)


@pytest.mark.parametrize("grid_z", [1, 3])
@pytest.mark.parametrize("extent", ["slab", "whole"])
def test_dataset_labels_agree_with_the_places_of_tiles(places_set, extent, grid_z):
    dataset = open_sets(places_set, extent=extent, depth=12, grid_z=grid_z)  # of twelve slices
    depth, heights = 12 // grid_z, set()
    offsets = np.array([int((place + 0.5) * depth / 4) for place in range(4)])
    for epoch in range(10):
        sample = dataset[epoch, 1]
        assert sample.tiles.shape == (2 + 9 * grid_z, 4, 16, 16, 3) and sample.tiles.dtype == torch.uint8
        corners = sample.tiles[:, :, 0, 0].numpy().astype(int)  # (K, T, 3): row, column and slice
        starts = corners[:, 0, [2, 0, 1]] - [offsets[0], 0, 0]
        np.testing.assert_array_equal(corners[..., 2], starts[:, :1] + offsets)
        np.testing.assert_array_equal(starts[2:], dataset.extent.grid.base_starts())
        np.testing.assert_array_equal(sample.label, overlap_labels(starts[:2], starts[2:], (depth, 16, 16)))
        heights |= set(starts[:2, 0])
    assert len(heights) > 4 or grid_z == 1


def test_dataset_labels_with_jitter_agree_with_the_places_of_tiles(tmp_path):
    """Places are read off the means of the tiles, whose levels are their rows, columns and slices."""
    folder = write_prepared(tmp_path / "set", draw_places, series=1, slices=48)
    shape = {"extent": "whole", "depth": 48, "grid_z": 3, "slices": 1, "random_crops": 16, "jitter": 0.3}
    dataset, sizes = open_sets(folder, **shape), set()
    for epoch in range(20):
        sample = dataset[epoch, 0]
        places = sample.tiles.double().mean(dim=(1, 2, 3))[:, [2, 0, 1]].numpy()  # (K, 3)
        size = (places[-1] - places[16]) / 2  # from the first base to the last
        distance = np.abs(places[:16, None] - places[None, 16:]) / size
        expected = np.clip(1 - distance, 0, None).prod(axis=-1)
        np.testing.assert_allclose(sample.label, expected, atol=0.05)
        assert len(np.unique(places[:16, 0])) <= MAX_HEIGHTS
        sizes.add(tuple(size.round().astype(int)))
    assert len(sizes) > 8


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"canvas": 24, "tile": 8, "windows": ("organ",)},
        {"canvas": 60, "tile": 16, "windows": ("wide", "soft")},
        {"canvas": 60, "tile": 24, "grid_z": 2},
    ],
)
def test_dataset_tiles_equal_a_plain_implementation(noise_set, changes):
    dataset = open_sets(noise_set, extent="whole", **changes)
    sample = dataset[0, 1]
    channels = [SMALL["windows"].index(name) for name in changes.get("windows", SMALL["windows"])]
    canvas, tile = changes.get("canvas", 48), changes.get("tile", 16)
    crop_depth, crop, _ = dataset.extent.grid.crop
    folder = image_folder(noise_set, "11", "101")
    shown = [read_png(folder / slice_name(int((k + 0.5) * 12 / 8))) for k in range(8)]
    shrinks = cv2.INTER_AREA if canvas < 48 else cv2.INTER_LINEAR
    slices = [cv2.resize(image, (canvas, canvas), interpolation=shrinks) for image in shown]
    for number, (z, y, x) in enumerate(dataset.extent.grid.base_starts()):
        for place in range(4):
            image = slices[z + int((place + 0.5) * crop_depth / 4)][y : y + crop, x : x + crop, channels]
            shrinks = cv2.INTER_AREA if tile < crop else cv2.INTER_LINEAR
            expected = cv2.resize(np.ascontiguousarray(image), (tile, tile), interpolation=shrinks)
            np.testing.assert_array_equal(
                sample.tiles[2 + number, place], expected.reshape(tile, tile, -1), strict=True
            )


def test_dataset_reads_only_the_slices_of_the_sample(tmp_path):
    folder = write_prepared(tmp_path / "set", draw_indices, series=1, slices=20)
    dataset = open_sets(folder, grid_z=2, slices=2)
    used = {slice_name(index) for index in dataset[0, 0].tiles[..., 1].unique().tolist()}
    assert len(used) < 8
    for path in image_folder(folder, "10", "100").glob("*.png"):
        if path.name not in used:
            path.unlink()
    dataset[0, 0]


def test_dataset_samples_follow_from_seed_epoch_and_entry(noise_set):
    changes = {"appearance": 0.5, "crop_flip": 0.5, "crop_shift": 0.5, "crop_rotate90": 0.5}
    dataset = open_sets(noise_set, **changes)
    first = dataset[3, 1]
    dataset[7, 0]  # what was drawn before must not matter
    assert same(first, dataset[3, 1]) and same(first, open_sets(noise_set, **changes)[3, 1])
    for other in (dataset[4, 1], open_sets(noise_set, seed=1, **changes)[3, 1]):
        assert not torch.equal(first.label, other.label)


@pytest.mark.parametrize("extent", ["slab", "box"])
def test_dataset_samples_do_not_depend_on_workers(noise_set, extent):
    batches = []
    for workers in (0, 2):
        dataset = open_sets(noise_set, extent=extent, appearance=1.0, crop_flip=0.5, repeat=(2,))
        order = VolumeOrder(4, 2, seed=0, first_step=0, steps=4, sets=dataset.index.sets)
        batches.append(list(StackLoader(dataset, workers, batch_sampler=order)))
    assert all(same(one, two) for one, two in zip(*batches, strict=True))


def test_dataset_of_several_sets_has_windows_of_each(tmp_path, indices_set):
    other = write_prepared(
        tmp_path / "other", lambda s, i: np.full((48, 48, 1), 77, np.uint8), series=2, windows=("narrow",)
    )
    dataset = open_sets(indices_set, other, windows=("soft",), set_windows=("wide", "narrow"))
    assert len(dataset) == 7
    assert dataset[0, 4].tiles.unique().tolist() == [255]
    assert dataset[0, 5].tiles.unique().tolist() == [77]
    both = open_sets(indices_set, windows=("soft", "organ"), set_windows=("wide+soft",))[0, 2]
    assert both.tiles[0, 0, 0, 0].tolist() == [255, 2]


def test_dataset_visits_repeated_series_with_other_draws(places_set, indices_set):
    dataset = open_sets(places_set, indices_set, repeat=(3, 1))
    assert (
        len(dataset) == 3 * 3 + 5 and len(dataset.index) == 3 + 5 and dataset.index.sets == ((3, 3), (5, 1))
    )
    assert [dataset.index.row_of(entry) for entry in range(14)] == [0, 1, 2] * 3 + [3, 4, 5, 6, 7]
    visits = [dataset[0, entry] for entry in (1, 4, 7)]
    assert [int(visit.series_row) for visit in visits] == [1, 1, 1]
    assert not any(torch.equal(visits[0].label, other.label) for other in visits[1:])
    sample = dataset[0, 11]
    assert (
        sample.tiles[0, 0, 0, 0, 0] == 2 and dataset.index.table().series_id[int(sample.series_row)] == "102"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": ("soft", "bone")}, "no window bone; it has soft organ wide"),
        ({"windows": ("soft",), "set_windows": ("bone",)}, "no window bone"),
    ],
)
def test_open_dataset_refuses_an_unknown_window(indices_set, changes, message):
    with pytest.raises(UserError, match=message):
        open_sets(indices_set, **changes)


def test_open_dataset_refuses_a_set_without_usable_series(tmp_path):
    folder = write_prepared(tmp_path / "set", draw_indices, series=1, slices=1)
    table = folder / "series.csv"
    table.write_text(table.read_text().replace(",ok,", ",skipped,"))
    with pytest.raises(UserError, match="no usable series"):
        open_sets(folder)


def test_dataset_refuses_images_that_contradict_dataset_json(tmp_path):
    folder = write_prepared(tmp_path / "set", draw_indices, series=1, slices=1)
    path = image_folder(folder, "10", "100") / slice_name(0)
    for image in (np.zeros((48, 48), np.uint8), np.zeros((24, 24, 3), np.uint8)):
        cv2.imwrite(str(path), image)
        with pytest.raises(UserError, match=r"0000\.png does not fit dataset\.json"):
            open_sets(folder)[0, 0]


def noise_tiles(crops=6):
    return np.random.default_rng(0).integers(0, 256, (crops, 4, 16, 16, 2), dtype=np.uint8)


def changed(tiles, seed=0, **switches):
    result = tiles.copy()
    CropChanges(**OFF | switches).apply(result, np.random.default_rng(seed))
    return result


def test_crop_changes_switched_off_change_nothing():
    np.testing.assert_array_equal(changed(noise_tiles()), noise_tiles())


def test_crop_changes_flip_along_every_axis():
    tiles = noise_tiles()
    np.testing.assert_array_equal(changed(tiles, flip=1.0), tiles[:, ::-1, ::-1, ::-1])
    seen = set()
    for seed in range(20):
        for tile, result in zip(tiles, changed(tiles, seed, flip=0.5), strict=True):
            fits = [
                axes
                for axes in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
                if (np.flip(tile, axes) == result).all()
            ]
            assert len(fits) == 1
            seen.add(fits[0])
    assert len(seen) == 8


def test_crop_changes_turn_by_quarters_in_the_plane():
    tiles = noise_tiles()
    seen = set()
    for seed in range(10):
        for tile, result in zip(tiles, changed(tiles, seed, rotate90=1.0), strict=True):
            seen |= {k for k in range(4) if (np.rot90(tile, k, axes=(1, 2)) == result).all()}
    assert seen == {1, 2, 3}


def test_crop_changes_shift_by_one_number_per_crop():
    tiles = noise_tiles(50)
    differences = set()
    for tile, result in zip(tiles, changed(tiles, shift=1.0), strict=True):
        inside = (result > 0) & (result < 255)
        difference = np.unique(result.astype(int)[inside] - tile[inside])
        assert len(difference) == 1 and abs(difference[0]) <= 26
        np.testing.assert_array_equal(result, np.clip(tile.astype(int) + difference[0], 0, 255))
        differences.add(int(difference[0]))
    assert min(differences) < -15 and max(differences) > 15


@pytest.mark.parametrize("switch", ["flip", "rotate90", "shift"])
def test_crop_changes_happen_with_their_probability(switch):
    tiles = noise_tiles(1000)
    share = (changed(tiles, **{switch: 0.2}) != tiles).any(axis=(1, 2, 3, 4)).mean()
    expected = 1 - 0.8**3 if switch == "flip" else 0.2
    assert abs(share - expected) < 0.05


def test_crop_changes_draw_independently():
    tiles = noise_tiles()
    turned = changed(tiles, rotate90=1.0)
    flipped = changed(tiles[:, ::-1, ::-1, ::-1], rotate90=1.0)
    np.testing.assert_array_equal(changed(tiles, rotate90=1.0, flip=1.0), flipped)
    assert (turned != flipped).any()
