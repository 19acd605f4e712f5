"""Changes of grey levels on the device: one draw per crop, and the distribution of albumentations."""

import cv2
import numpy as np
import pytest
import torch

from src.nn.augmentation import AppearanceChange
from src.nn.loading import StackLoader
from src.voco.appearance import HOLES, PARAMETERS, Appearance, draw_appearance, shift_matrices
from src.voco.dataset import open_dataset
from src.voco.model import embed_by_both
from src.voco.run import pretrain
from tests.helpers.voco_files import draw_anatomy, write_prepared
from tests.helpers.voco_runs import make_options
from tests.voco.test_dataset import open_sets

TILE, WINDOWS = 32, 2
CPU = torch.device("cpu")
NEUTRAL = np.zeros(PARAMETERS, dtype=np.float32)
NEUTRAL[[0, 2]] = 1  # contrast and gamma


def grey_tiles(crops: int = 1, slices: int = 1, neighbours: int = 1) -> np.ndarray:
    """Textured images with black and white parts, uint8 (crops, slices, TILE, TILE, neighbours * WINDOWS)."""
    rng = np.random.default_rng(0)
    rough = rng.uniform(-60, 330, (crops, slices, 5, 5, neighbours * WINDOWS))
    tiles = [
        [cv2.resize(each, (TILE, TILE), interpolation=cv2.INTER_CUBIC) for each in crop] for crop in rough
    ]
    return np.clip(tiles, 0, 255).astype(np.uint8)


def change(tiles: np.ndarray, parameters: np.ndarray, device: torch.device = CPU) -> np.ndarray:
    appearance = Appearance(TILE, WINDOWS, device)
    given = (torch.from_numpy(part).to(device) for part in (tiles, parameters))
    result = appearance(*given)
    assert result.dtype == torch.uint8 and result.is_contiguous()
    return result.cpu().numpy()


def draw(crops: int, strength: float = 1.0, seed: int = 0) -> np.ndarray:
    return draw_appearance(crops, strength, TILE, np.random.default_rng(seed))


def only(crops: int, **values: float) -> np.ndarray:
    """Parameters that leave everything else unchanged."""
    columns = {"contrast": 0, "brightness": 1, "gamma": 2, "sigma": 3, "noise": 4, "place": 5}
    parameters = np.tile(NEUTRAL, (crops, 1))
    for name, value in values.items():
        parameters[:, columns[name]] = value
    return parameters


def test_appearance_of_neutral_parameters_changes_nothing():
    tiles = grey_tiles(4, slices=2, neighbours=3)
    np.testing.assert_array_equal(change(tiles, only(4)), tiles)
    np.testing.assert_array_equal(change(tiles, only(4, sigma=0.28)), tiles)  # reaches no other pixel
    np.testing.assert_array_equal(change(tiles, draw(4, strength=0)), tiles)


def test_appearance_changes_contrast_brightness_and_gamma():
    tiles = grey_tiles(2)
    expected = np.clip(tiles * 1.3 - 40, 0, 255) / 255
    result = change(tiles, only(2, contrast=1.3, brightness=-40, gamma=0.7))
    assert np.abs(result - 255 * expected**0.7).max() <= 0.51


@pytest.mark.parametrize("sigma", [0.3, 0.6, 0.9, 1.3])
def test_appearance_blurs_as_opencv(sigma):
    tiles = grey_tiles(2, slices=2)
    offsets = np.arange(-int(3.5 * sigma), int(3.5 * sigma) + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    expected = [[cv2.sepFilter2D(each.astype(float), -1, kernel, kernel) for each in crop] for crop in tiles]
    assert np.abs(change(tiles, only(2, sigma=sigma)) - expected).max() <= 0.51


def test_appearance_noise_is_normal_and_differs_between_windows_and_crops():
    tiles = np.full((6, 2, TILE, TILE, 3 * WINDOWS), 128, dtype=np.uint8)
    parameters = only(6, noise=20)
    parameters[:, 5] = draw(6)[:, 5]
    noise = change(tiles, parameters).astype(float) - 128
    assert (noise == noise[:, :1]).all()  # one noise for all slices and neighbours
    assert (noise == np.tile(noise[..., :WINDOWS], 3)).all()
    independent = noise[:, 0, :, :, :WINDOWS].transpose(0, 3, 1, 2).reshape(6 * WINDOWS, -1)
    assert np.abs(independent.mean(axis=1)).max() < 3 and np.abs(independent.std(axis=1) - 20).max() < 3
    correlation = np.corrcoef(independent) - np.eye(len(independent))
    assert np.abs(correlation).max() < 0.15
    assert (np.abs(independent) > 40).mean() == pytest.approx(0.043, abs=0.01)  # of a normal distribution


def test_appearance_blackens_rectangles():
    tiles = np.full((1, 2, TILE, TILE, WINDOWS), 200, dtype=np.uint8)
    parameters = only(1)
    parameters[0, 6:] = [3, 4, 9, 20, 30, 30, 32, 32, 5, 5, 5, 5]  # first row and column, last; one is empty
    expected = tiles.copy()
    expected[:, :, 3:9, 4:20] = expected[:, :, 30:, 30:] = 0
    np.testing.assert_array_equal(change(tiles, parameters), expected)


def test_appearance_is_shared_by_slices_and_neighbours():
    tiles = np.tile(grey_tiles(20), (1, 4, 1, 1, 3))
    result = change(tiles, draw(20))
    assert (result == np.tile(result[:, :1, :, :, :WINDOWS], (1, 4, 1, 1, 3))).all()
    assert len({crop.tobytes() for crop in change(np.repeat(grey_tiles(), 40, axis=0), draw(40))}) > 30


def test_appearance_of_a_crop_does_not_depend_on_its_batch(monkeypatch):
    tiles, parameters = grey_tiles(12), draw(12)
    whole = change(tiles.reshape(3, 4, *tiles.shape[1:]), parameters.reshape(3, 4, -1))
    monkeypatch.setattr("src.voco.appearance._PART", 5 * tiles[0].size)
    np.testing.assert_array_equal(whole.reshape(tiles.shape), change(tiles, parameters))
    one = np.concatenate([change(tiles[k : k + 1], parameters[k : k + 1]) for k in range(12)])
    assert np.abs(whole.reshape(tiles.shape).astype(int) - one).max() <= 1  # products of other shapes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a CUDA device with the CPU")
def test_appearance_on_a_gpu_equals_that_on_a_cpu():
    tiles, parameters = grey_tiles(64, slices=2, neighbours=3), draw(64)
    difference = np.abs(
        change(tiles, parameters).astype(int) - change(tiles, parameters, torch.device("cuda"))
    )
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_draw_appearance_keeps_probabilities_and_limits():
    drawn = draw(20_000, strength=0.5)
    contrast, brightness, gamma, sigma, noise, place = drawn[:, :6].T
    holes = drawn[:, 6:].reshape(-1, HOLES, 2, 2)
    sides = holes[:, :, 1] - holes[:, :, 0]
    count = (sides > 0).all(axis=-1).sum(axis=1)
    changed = [contrast != 1, brightness != 0, gamma != 1, sigma > 0, noise > 0, count > 0]
    shares = np.mean(changed, axis=1)
    np.testing.assert_allclose(shares, [0.8, 0.8, 0.5, 0.3, 0.5, 0.3], atol=0.015)
    together = np.corrcoef(changed[1:]) - np.eye(5)
    assert np.abs(together).max() < 0.03  # each change is drawn by itself
    limits = [(0.8, 1.2), (-0.15 * 255, 0.15 * 255), (2 / 3, 1.5), (0, 0.7), (0, 0.04 * 255), (0, 2**20)]
    for values, (low, high) in zip(drawn[:, :6].T, limits, strict=True):
        assert low <= values.min() and values.max() <= high
        assert values.max() - values.min() > 0.95 * (high - low)
    assert np.unique(place).size > 19_000 and set(np.unique(count)) == {0, 1, 2, 3}
    assert set(np.unique(sides[sides > 0])) == {1, 2, 3, 4}  # 0.05 to 0.15 of 32 pixels
    assert holes.min() == 0 and holes.max() == TILE


def describe(tiles: np.ndarray) -> np.ndarray:
    """Return mean, standard deviation, gradient energy and share of black pixels of each crop, (crops, 4)."""
    grey = tiles.reshape(len(tiles), -1).astype(float)
    steps = np.diff(tiles.astype(float), axis=2)[:, :, :, 1:], np.diff(tiles.astype(float), axis=3)[:, :, 1:]
    energy = sum((step**2).reshape(len(tiles), -1).mean(axis=1) for step in steps)
    return np.stack([grey.mean(1), grey.std(1), np.sqrt(energy), (grey == 0).mean(1)], axis=1)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_appearance_has_the_distribution_of_albumentations(strength):
    crops = 4000
    tiles = np.repeat(grey_tiles(8), crops // 8, axis=0)
    reference, rng = AppearanceChange(strength), np.random.default_rng(1)
    wanted = describe(np.stack([reference(tile, rng) for tile in tiles]))
    found = describe(change(tiles, draw(crops, strength)))
    error = np.sqrt((wanted.var(axis=0) + found.var(axis=0)) / crops)
    # albumentations cuts decimals off after each change, this rounds: up to 1.5 levels
    assert (np.abs(found.mean(axis=0) - wanted.mean(axis=0)) < 4 * error + [1.5, 0.3, 0.3, 0.005]).all()
    np.testing.assert_allclose(found.std(axis=0), wanted.std(axis=0), rtol=0.08)
    quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
    gap = np.quantile(found, quantiles, axis=0) - np.quantile(wanted, quantiles, axis=0)
    assert (np.abs(gap) < 0.15 * wanted.std(axis=0) + [1.5, 0.3, 0.3, 0.005]).all()


def test_appearance_grows_with_its_strength():
    tiles = grey_tiles(100)
    sizes = [np.abs(change(tiles, draw(100, s)).astype(int) - tiles).mean() for s in (0.05, 0.3, 1.0)]
    assert 0 < 2 * sizes[0] < sizes[1] and 2 * sizes[1] < sizes[2]


def test_appearance_keeps_places_and_labels(tmp_path):
    folder = write_prepared(tmp_path / "set", draw_anatomy, series=1)
    plain, other = (open_sets(folder, windows=("soft",), appearance=strength) for strength in (0.0, 0.5))
    appearance = Appearance(plain.tile, 1, CPU)
    correlations = []
    for epoch in range(5):
        before, after = plain[epoch, 0], other[epoch, 0]
        assert torch.equal(before.label, after.label) and torch.equal(before.tiles, after.tiles)
        shown = appearance(after.tiles, after.appearance)
        assert (before.tiles != shown).any()
        for one, two in zip(before.tiles, shown, strict=True):
            correlations.append(np.corrcoef(one.flatten(), two.flatten())[0, 1])
    assert np.median(correlations) > 0.8


def test_pretraining_changes_the_crops_of_networks_and_pictures(tmp_path, monkeypatch):
    folder = write_prepared(tmp_path / "set", draw_anatomy, series=2)
    options = make_options(folder, tmp_path / "run", appearance=1.0, batch=2, picture_every=1, steps=1)
    embedded, drawn = [], []
    monkeypatch.setattr(
        "src.voco.position.embed_by_both",
        lambda student, teacher, tiles: embedded.append(tiles) or embed_by_both(student, teacher, tiles),
    )
    picture = np.zeros((4, 4, 3), np.uint8)
    pretrain(options, lambda batch, *_: drawn.append(batch) or picture)
    batch = next(iter(StackLoader(open_dataset(options), 0, batch_sampler=[[(0, 0), (0, 1)]])))
    assert len(embedded) == len(drawn) == 1 and torch.equal(embedded[0], drawn[0].tiles)
    sums = sorted(int(tiles.sum()) for tiles in batch.tiles)
    assert all(int(tiles.sum()) not in sums for tiles in embedded[0])
    appearance = Appearance(options.tile, len(options.windows), CPU)
    expected = sorted(int(tiles.sum()) for tiles in appearance(batch.tiles, batch.appearance))
    assert sorted(int(tiles.sum()) for tiles in embedded[0]) == expected


def test_shift_matrices_reflect_at_the_ends():
    row = torch.arange(5.0)
    shifted = row @ shift_matrices(5, 2)
    expected = [[2, 1, 0, 1, 2], [1, 0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 2, 3, 4, 3], [2, 3, 4, 3, 2]]
    assert shifted.tolist() == expected
    assert (torch.ones(1) @ shift_matrices(1, 4) == 1).all()
    assert (torch.ones(3) @ shift_matrices(3, 4) == 1).all()
