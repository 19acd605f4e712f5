"""Changes of single crops: drawn once a crop, following the seed, never touching where a crop was cut."""

import numpy as np
import pytest
import torch

from src.nn.augmentation import AppearanceChange
from src.voco.crop_augmentation import CropChanges
from src.voco.dataset import open_dataset
from src.voco.options import VocoOptions
from tests.helpers.voco_files import draw_anatomy, write_prepared

OFF = {"flip": 0.0, "rotate90": 0.0, "shift": 0.0, "appearance": 0.0}


def noise_tiles(crops=6):
    return np.random.default_rng(0).integers(0, 256, (crops, 4, 16, 16, 2), dtype=np.uint8)


def changed(tiles, seed=0, **switches):
    result = tiles.copy()
    CropChanges(**OFF | switches).apply(result, np.random.default_rng(seed))
    return result


def test_without_changes_tiles_stay_as_they_are():
    np.testing.assert_array_equal(changed(noise_tiles()), noise_tiles())


def test_a_flip_is_of_the_crop_along_any_of_its_axes():
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


def test_a_turn_is_of_one_to_three_quarters_in_the_plane():
    tiles = noise_tiles()
    seen = set()
    for seed in range(10):
        for tile, result in zip(tiles, changed(tiles, seed, rotate90=1.0), strict=True):
            seen |= {k for k in range(4) if (np.rot90(tile, k, axes=(1, 2)) == result).all()}
    assert seen == {1, 2, 3}


def test_a_shift_is_one_number_a_crop_of_up_to_a_tenth():
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
def test_a_probability_is_that_share_of_crops(switch):
    tiles = noise_tiles(1000)
    share = (changed(tiles, **{switch: 0.2}) != tiles).any(axis=(1, 2, 3, 4)).mean()
    expected = 1 - 0.8**3 if switch == "flip" else 0.2
    assert abs(share - expected) < 0.05


def test_one_change_leaves_the_draws_of_the_others_alone():
    tiles = noise_tiles()
    turned = changed(tiles, rotate90=1.0)
    flipped = changed(tiles[:, ::-1, ::-1, ::-1], rotate90=1.0)
    np.testing.assert_array_equal(changed(tiles, rotate90=1.0, flip=1.0), flipped)
    assert (turned != flipped).any()


def test_the_appearance_is_drawn_once_a_crop_and_shared_by_its_slices():
    tile = np.repeat(noise_tiles(1)[0, :1], 5, axis=0)
    change = AppearanceChange(1.0)
    results = [change(tile, np.random.default_rng(seed)) for seed in range(20)]
    assert all((result == result[:1]).all() and result.dtype == np.uint8 for result in results)
    assert len({result.tobytes() for result in results}) > 15
    crops = changed(np.repeat(noise_tiles(1), 8, axis=0), appearance=1.0)
    assert len({crop.tobytes() for crop in crops}) > 5


def test_a_stronger_appearance_is_a_larger_change():
    tiles = noise_tiles(40)
    sizes = [np.abs(changed(tiles, appearance=s).astype(int) - tiles).mean() for s in (0.05, 0.3, 1.0)]
    assert 0 < 2 * sizes[0] < sizes[1] and 2 * sizes[1] < sizes[2]


def test_the_appearance_changes_pixels_but_neither_places_nor_labels(tmp_path):
    folder = write_prepared(tmp_path / "set", draw_anatomy, series=1)
    small = {"canvas": 48, "depth": 8, "tile": 16, "slices": 4, "foreground": 0.0}
    plain, other = (
        open_dataset(VocoOptions(data=(str(folder),), output="unused", appearance=strength, **small))
        for strength in (0.0, 0.5)
    )
    correlations = []
    for epoch in range(5):
        before, after = plain[epoch, 0], other[epoch, 0]
        assert torch.equal(before.label, after.label)
        assert (before.tiles != after.tiles).any()
        for one, two in zip(before.tiles, after.tiles, strict=True):
            correlations.append(np.corrcoef(one.flatten(), two.flatten())[0, 1])
    assert np.median(correlations) > 0.8
