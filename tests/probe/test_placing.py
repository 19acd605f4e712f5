"""Placing crops of volumes never seen: geometry, hits, and intervals over patients."""

from pathlib import Path

import numpy as np
import pytest

from src.probe.estimates import FEW, percentile_interval, resampled_counts
from src.probe.frozen import HeldOut, load_run
from src.probe.placing import (
    MIN_CROPS,
    PlacedCrops,
    embed_series,
    hits_by_pair,
    middle_indices,
    own_sampler,
    placing_estimates,
    plain_geometry,
    standard_crops,
)
from src.voco.options import VocoOptions
from tests.helpers.doubtful_sets import mark_doubtful
from tests.helpers.voco_files import draw_indices, draw_ramps, write_prepared
from tests.helpers.voco_runs import write_frozen_run

LABEL = np.float32([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]])  # the second crop lies halfway between two bases
PATIENTS = np.array([f"patient {number}" for number in range(8)])


def embeddings(placed_at: list[int]) -> np.ndarray:
    """(R + 3, 3): orthogonal bases, and random crops that look like the bases `placed_at`."""
    return np.concatenate([np.eye(3)[placed_at], np.eye(3)]).astype(np.float32)


def placed(at: np.ndarray) -> PlacedCrops:
    """One draw of S series from `at` (S, R), the base that each crop looks like; base 0 is always right."""
    crops = np.stack([embeddings(row) for row in at.tolist()])[None]
    label = np.broadcast_to(np.float32([1, 0, 0]), (1, *at.shape, 3))
    return PlacedCrops(crops, crops, label)


@pytest.mark.parametrize(("placed_at", "hits"), [([0, 1], 2), ([0, 2], 2), ([0, 0], 1), ([1, 0], 0)])
def test_hits_by_pair_accepts_any_base_of_the_largest_overlap(placed_at, hits):
    assert hits_by_pair(embeddings(placed_at)[None], LABEL[None]) == hits


def test_hits_by_pair_rows_are_crops_and_columns_bases():
    turned = embeddings([0, 1])
    turned[2:] = turned[[3, 4, 2]]  # bases of a patient who lies otherwise
    hits = hits_by_pair(np.stack([embeddings([0, 1]), turned]), np.stack([LABEL, LABEL]))
    assert hits.tolist() == [[2, 0], [2, 0]]


def test_hits_by_pair_ignores_the_length_of_embeddings():
    long = embeddings([0, 1])
    long[3] *= 100
    assert hits_by_pair(long[None], LABEL[None]) == 2


def test_placing_estimates_exclude_other_series_of_the_same_patient():
    patient = np.array(["a", "a", "b"])
    figures = placing_estimates(placed(np.zeros((3, 4), dtype=int)), patient, seed=0)
    assert figures["intra/projection"].trials == 3 * 4
    assert (
        figures["cross/projection"].trials == (2 * 1 + 1 * 2) * 4
    )  # all six pairs but a's two with each other


def test_placing_estimates_of_random_embeddings_are_at_chance():
    rng = np.random.default_rng(0)
    crops = rng.normal(size=(1, 8, 40 + 9, 16)).astype(np.float32)
    label = np.eye(9, dtype=np.float32)[rng.integers(9, size=(1, 8, 40))]
    figures = placing_estimates(PlacedCrops(crops, crops, label), PATIENTS, seed=0)
    for figure in figures.values():
        assert figure.chance == pytest.approx(1 / 9)
        assert figure.low < 1 / 9 < figure.high


def test_placing_estimates_centre_the_features():
    shifted = placed(np.array([[0, 0, 1, 2]] * 8))
    noise = np.random.default_rng(0).normal(0, 0.2, (1, 8, 7, 3)).astype(np.float32)
    common = np.float32([100, 1, -300])  # a small angle between any two, and another length of each
    figures = placing_estimates(
        shifted._replace(features=shifted.features + noise + common), PATIENTS, seed=0
    )
    assert figures["cross/projection"].value == 0.5
    assert abs(figures["cross/features_centred"].value - 0.5) < abs(figures["cross/features"].value - 0.5)


def test_placing_estimates_hold_the_value_of_each_patient():
    """Crops of the first of three patients are always right, of the others never."""
    figures = placing_estimates(placed(np.array([[0] * 4, [1] * 4, [1] * 4])), np.array(list("abc")), seed=0)
    for kind in ("intra", "cross"):
        assert figures[f"{kind}/projection"].by_patient == {"a": 1, "b": 0, "c": 0}


def test_placing_estimates_of_an_encoder_alone_have_no_projection():
    alone = placed(np.zeros((3, 4), dtype=int))._replace(projection=None)
    figures = placing_estimates(alone, np.array(list("abc")), seed=0)
    assert set(figures) == {
        f"{kind}/{name}" for kind in ("intra", "cross") for name in ("features", "features_centred")
    }


def test_placing_intervals_resample_patients_not_crops():
    """Half of the patients are always right: 8 patients say little, however many crops each has."""
    at = np.repeat([[0], [1]] * 4, 100, axis=1)
    figure = placing_estimates(placed(at), PATIENTS, seed=0)["intra/projection"]
    assert figure.value == 0.5 and figure.over == "patients" and figure.trials == 800
    assert figure.high - figure.low > 0.5  # of 800 independent trials: 0.07


def test_cross_intervals_resample_patients_of_crops_and_bases():
    """Resampled one by one: counts weigh a pair of patients by their product, as a loop over pairs does."""
    rng = np.random.default_rng(0)
    at = rng.integers(2, size=(6, 5))
    data = placed(at)
    data.projection[0, :, 5:] = data.projection[0, :, 5:][:, :, rng.permutation(3)]
    figure = placing_estimates(data, PATIENTS[:6], seed=3)["cross/projection"]
    hits = hits_by_pair(data.projection[0], data.label[0])
    shares = []
    for counts in resampled_counts(6, 3):
        weight = np.outer(counts, counts) * ~np.eye(6, dtype=bool)
        shares.append((weight * hits).sum() / (5 * weight.sum()) if weight.any() else np.nan)
    assert (figure.low, figure.high) == pytest.approx(percentile_interval(np.array(shares)))


def test_placing_intervals_of_few_patients_resample_draws():
    at = np.repeat([[0], [1], [0]], 4, axis=1)
    one = placed(at)
    draws = PlacedCrops(*(np.concatenate([part, part[:, [1, 0, 2]]]) for part in one))
    figure = placing_estimates(draws, np.array(["a", "b", "c"]), seed=0)["intra/projection"]
    assert len(at) < FEW and figure.over == "draws"
    assert (figure.value, figure.low) == (pytest.approx(2 / 3), None)  # each draw gives the same share


@pytest.fixture
def ramps(tmp_path) -> HeldOut:
    """8 slices of 48 px: row, column and series of a pixel."""
    return HeldOut.open(write_prepared(tmp_path, draw_ramps, slices=8), ("soft", "organ", "wide"))


def test_standard_crops_agree_with_their_labels(ramps):
    crops, label = standard_crops(ramps, 2, 0, tile=16, slices=4, random_crops=50, seed=0)
    assert crops.shape == (59, 4, 16, 16, 3) and label.shape == (50, 9)
    corners = crops[:, 0, 0, 0].astype(int)  # (K, 3): row, column, series
    assert corners[50:].tolist() == [[y, x, 2] for y in (0, 16, 32) for x in (0, 16, 32)]
    apart = np.abs(corners[:50, None, :2] - corners[None, 50:, :2])
    np.testing.assert_allclose(label, np.clip(16 - apart, 0, None).prod(-1) / 256)
    assert (corners[:50, :2].max(axis=0) > 28).all() and (corners[:50, :2].min(axis=0) < 4).all()


def test_standard_crops_are_at_the_same_places_for_every_tile(ramps):
    small, _ = standard_crops(ramps, 0, 0, tile=8, slices=1, random_crops=40, seed=0)
    large, _ = standard_crops(ramps, 0, 0, tile=16, slices=1, random_crops=40, seed=0)
    centres = [crops[:, 0, ..., :2].mean((1, 2)) for crops in (small, large)]
    np.testing.assert_allclose(*centres, atol=2)


def test_standard_crops_differ_between_draws_series_and_seeds(ramps):
    samples = [
        standard_crops(ramps, row, draw, tile=16, slices=1, random_crops=8, seed=seed)[1]
        for row, draw, seed in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]
    ]
    assert all((samples[0] != other).any() for other in samples[1:4])
    np.testing.assert_array_equal(samples[0], samples[4])


@pytest.mark.parametrize("n_slices", [4, 40, 41])
def test_middle_indices_cover_the_middle_half(n_slices):
    heights = (middle_indices(n_slices, 8) + 0.5) / n_slices
    np.testing.assert_allclose(heights, 0.25 + 0.5 * (np.arange(8) + 0.5) / 8, atol=0.5 / n_slices + 1e-9)


def test_embed_series_draws_few_series_more_often(tmp_path):
    net = load_run(write_frozen_run(tmp_path / "run"))

    def sample(series, draw):
        images = np.full((8 + 9, 1, 32, 32, 2), 40 * series + draw, dtype=np.uint8)
        return images, np.full((8, 9), draw, dtype=np.float32)

    found = embed_series(net, sample, 3, "test")
    draws = len(found.label)
    assert (draws - 1) * 3 * 8 < MIN_CROPS <= draws * 3 * 8
    assert found.projection.shape == (draws, 3, 17, 8)
    np.testing.assert_array_equal(found.label[:, :, 0, 0], np.arange(draws)[:, None].repeat(3, axis=1))
    np.testing.assert_array_equal(found.features[4, 2], net.embed(sample(2, 4)[0])["features"])


def test_own_sampler_uses_the_chosen_patients_and_the_runs_grid(tmp_path):
    folder = write_prepared(tmp_path / "set", draw_indices)
    net = load_run(
        write_frozen_run(tmp_path / "run", grid=2, grid_z=2, depth=8, extent="whole", random_crops=1)
    )
    for patients in (None, 2):
        sample = own_sampler(net, HeldOut.open(folder, ("soft", "organ"), patients), seed=0)
        crops, label = sample(1, 0)
        assert crops.shape == (8 + 8, 2, 32, 32, 2) and label.shape == (8, 8)
        assert (crops[..., 0] == 1).all()  # the second patient's series
        assert set(crops[8:, 0, 0, 0, 1]) != set(crops[12:, 0, 0, 0, 1])  # bases at two heights


def test_own_sampler_counts_without_doubtful_series(tmp_path):
    folder = mark_doubtful(write_prepared(tmp_path / "set", draw_indices), ["100", "102"])
    net = load_run(write_frozen_run(tmp_path / "run", extent="whole", random_crops=1, doubtful="keep"))
    sample = own_sampler(net, HeldOut.open(folder, ("soft", "organ"), patients=2), seed=0)
    assert [set(sample(row, 0)[0][..., 0].flat) for row in (0, 1)] == [{1}, {3}]  # series 101 and 103


def test_plain_geometry_switches_off_random_changes():
    changes = {"appearance": 0.8, "crop_flip": 0.5, "crop_rotate90": 0.5, "crop_shift": 0.5, "repeat": (3,)}
    changes |= {"jitter": 0.2, "cache": Path("cache")}
    options = VocoOptions(data=("a",), output="b", set_windows=("soft",), **changes)
    plain = plain_geometry(options, "held", seed=4)
    assert (plain.appearance, plain.crop_flip, plain.crop_rotate90, plain.crop_shift) == (0, 0, 0, 0)
    assert (plain.jitter, plain.cache) == (0, None)
    assert (plain.data, plain.repeat, plain.set_windows, plain.seed) == (("held",), (), (), 4)
    assert (plain.canvas, plain.depth, plain.extent) == (options.canvas, options.depth, options.extent)
