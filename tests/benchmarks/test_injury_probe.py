"""The measurement of painted injuries: AUC inside patients, of features that see them and of others."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import injury_probe
from injury_probe import (
    MARGIN,
    InjuryTiles,
    TuneSettings,
    auc,
    auc_estimate,
    measure_injuries,
    measure_tuned,
    read_tiles,
)
from painted_injuries import KINDS, TARGETS

from src.core.errors import UserError
from src.probe.frozen import FrozenNet, load_encoder

TILE = 32
NAMES = {f"{target}/{kind}" for target in TARGETS for kind in ("untouched", "harmless")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six patients whose injuries are bright discs; harmless edits are dark ones."""
    folder, rng = tmp_path_factory.mktemp("painted"), np.random.default_rng(0)
    for patient in range(6):
        examples = 2 * len(TARGETS)
        images = rng.integers(60, 140, (examples, 1, 3 * TILE, 3 * TILE)).repeat(len(KINDS), axis=1)
        centre = rng.uniform(0.3, 0.7, (examples, 2))
        for example, (row, col) in enumerate((centre * 3 * TILE).astype(int)):
            disc = slice(row - 5, row + 5), slice(col - 5, col + 5)
            images[example, 0][disc] = 250
            images[example, 2:, disc[0], disc[1]] = 10
        np.savez(
            folder / f"p{patient}.npz",
            images=images.astype(np.uint8),
            centre=centre.astype(np.float32),
            target=np.repeat(TARGETS, 2),
        )
    return folder


@pytest.fixture(scope="module")
def tiles(folder) -> InjuryTiles:
    return read_tiles(folder, TILE)


def test_read_tiles_cuts_around_the_centre(tiles):
    assert tiles.images.shape == (60, len(KINDS), TILE + 2 * MARGIN, TILE + 2 * MARGIN)
    assert (tiles.centres()[:, 0, TILE // 2, TILE // 2] == 250).all()
    assert set(tiles.patient) == {f"p{number}" for number in range(6)}


def test_read_tiles_refuses_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no examples"):
        read_tiles(tmp_path, TILE)


def test_auc_counts_pairs_and_half_of_the_ties():
    assert auc(np.array([[2.0, 1.0], [3.0, 0.0]])) == 1
    assert auc(np.array([[0.0, 1.0, 1.0]])) == 0
    assert auc(np.array([[1.0, 1.0], [2.0, 0.0]])) == pytest.approx(0.875)


def test_auc_estimate_is_the_mean_over_patients():
    score = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    estimate = auc_estimate(score, np.array(["a", "b", "c"]), seed=0)
    assert estimate.by_patient == {"a": 1.0, "b": 0.0, "c": 0.5}
    assert estimate.value == 0.5 and estimate.low is None and estimate.patients == 3


def test_measure_injuries_finds_them_in_features_that_see_them(tiles):
    seeing = measure_injuries(lambda images: images[:, 12:20, 12:20].mean((1, 2))[:, None], tiles, seed=0)
    blind = measure_injuries(lambda images: images[:, :4, :4].reshape(len(images), -1), tiles, seed=0)
    assert seeing.keys() == {f"injury/frozen/{name}" for name in NAMES} == blind.keys()
    assert all(estimate.value > 0.95 and len(estimate.by_patient) == 6 for estimate in seeing.values())
    assert all(0.2 < estimate.value < 0.8 for estimate in blind.values())


def load_random() -> FrozenNet:
    return load_encoder("none", ("soft",), TILE, "test_efficientnet")


def test_measure_tuned_repeats_itself(tiles):
    settings = TuneSettings(folds=2, steps=3, pairs=4)

    first, again = (measure_tuned(load_random, tiles, 0, settings) for _ in range(2))
    assert first.keys() == {f"injury/tuned/{name}" for name in NAMES}
    assert first == again


@pytest.mark.slow
def test_measure_tuned_learns(tiles):
    settings = TuneSettings(folds=2, steps=60, pairs=8, lr=3e-3)
    found = measure_tuned(load_random, tiles, 0, settings)
    assert np.mean([estimate.value for estimate in found.values()]) > 0.9


def test_main_measures_development_patients_only(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(injury_probe, "TEST_PATIENTS", ("p0", "p1"))
    options = injury_probe.InjuryOptions(painted=folder, backbone="test_efficientnet", tile=TILE)
    figures = injury_probe.main(options)["figures"]
    assert {figure["patients"] for figure in figures.values()} == {4}
