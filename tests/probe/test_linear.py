"""Probes of frozen features: which patients are fitted on and tested, and what is estimated."""

import numpy as np
import pytest

from src.probe.linear import (
    REGRESSORS,
    height_estimates,
    organ_auc,
    organ_estimates,
    patient_folds,
    predict,
)
from src.probe.tiles import BLOCKS, ProbeSet, join

NOISE = 0.1


def organ_tiles(patients: dict[str, tuple[int, ...]], told_by: str = "organ", count: int = 24) -> ProbeSet:
    """Tiles of the given labels a patient; the features tell the organ, the patient or nothing."""
    rng = np.random.default_rng(0)
    rows = [
        (patient, label, block * BLOCKS // count)
        for patient, labels in patients.items()
        for label in labels
        for block in range(count)
    ]
    patient, target, block = (np.array(column) for column in zip(*rows, strict=True))
    numbers = np.unique(patient, return_inverse=True)[1]
    column = {"organ": target, "patient": 6 * numbers + target, "nothing": np.zeros_like(target)}[told_by]
    codes = np.random.default_rng(1).normal(size=(column.max() + 1, 32))
    features = codes[column] + rng.normal(0, NOISE, (len(rows), 32))
    return ProbeSet(features.astype(np.float32), target, patient, block, np.full(len(rows), 300.0))


def names(count: int) -> list[str]:
    return [f"patient {number}" for number in range(count)]


@pytest.mark.parametrize(("count", "folds"), [(2, 2), (3, 3), (4, 4), (5, 2), (9, 2)])
def test_patient_folds_test_every_patient_once(count, folds):
    patient = np.repeat(names(count), 3)
    found = patient_folds(patient, seed=0)
    assert len(found) == folds
    assert (np.sum([tested for _, tested in found], axis=0) == 1).all()
    for fitted, tested in found:
        assert not set(patient[fitted]) & set(patient[tested]) and (fitted | tested).all()


def test_organ_estimates_of_perfect_features():
    figures, absent = organ_estimates(organ_tiles(dict.fromkeys(names(6), (0, 1, 2, 3, 4, 5))), seed=0)
    assert set(figures) == {"organ/logistic", "organ/knn"} and not absent
    for figure in figures.values():
        assert figure.value == 1 and figure.chance == pytest.approx(1 / 6)
        assert (figure.trials, figure.patients, figure.over) == (6 * 6 * 24, 6, "patients")


def test_organ_estimates_of_features_of_the_patient_are_near_chance():
    """The organs of one patient are told without fault, and say nothing about those of the next."""
    tiles = organ_tiles(dict.fromkeys(names(8), (0, 1, 2, 3)), told_by="patient")
    figures, _ = organ_estimates(tiles, seed=0)
    assert all(figure.value < 0.45 for figure in figures.values())  # chance is 0.25; some codes are alike


def test_organ_estimates_of_constant_features_are_at_chance():
    tiles = organ_tiles(dict.fromkeys(names(8), (0, 1, 2, 3)), told_by="nothing", count=60)
    for figure in organ_estimates(tiles, seed=0)[0].values():
        assert figure.low < 0.25 < figure.high


def test_organ_estimates_balance_the_classes():
    """Nine times as much other tissue: a model of the tiles as they come would hardly ever name the organ."""
    tiles = organ_tiles(dict.fromkeys(names(6), (0,) * 9 + (1,)), told_by="nothing")
    tiles.features[:, 0] += 2 * NOISE * tiles.target  # best told by a threshold: 0.84
    for figure in organ_estimates(tiles, seed=0)[0].values():
        assert figure.value > 0.7


def test_organ_estimates_count_rarely_labelled_organs_as_the_rest():
    """Liver against everything else between the two; all organs within the one that has them."""
    figures, absent = organ_estimates(organ_tiles({"chaos": (0, 1), "total": (0, 1, 2, 3, 4, 5)}), seed=0)
    between, within = figures["organ/logistic"], figures["organ_within/total/logistic"]
    assert (between.chance, between.trials, between.over) == (1 / 2, 8 * 24, "blocks")
    assert (within.chance, within.trials, within.patients) == (pytest.approx(1 / 6), 6 * 24, 1)
    assert within.value == 1
    assert absent == {"organ_within/chaos": "fewer than two organs are labelled"}
    aucs = [name for name in figures if name.startswith("organ_auc")]
    assert aucs == ["organ_auc/liver/chaos", "organ_auc/liver/total"]  # the other organs have one patient


def test_organ_auc_is_measured_only_for_few_patients():
    figures, _ = organ_estimates(organ_tiles(dict.fromkeys(names(5), (0, 1))), seed=0)
    assert set(figures) == {"organ/logistic", "organ/knn"}


def test_organ_auc_fits_on_the_other_patients():
    """Perfect between patients that are alike; of features of the patient it is far from perfect."""
    patients = dict.fromkeys(names(3), (0, 1, 2))
    perfect = organ_auc(organ_tiles(patients), seed=0)
    assert len(perfect) == 6
    for name, figure in perfect.items():
        assert (figure.value, figure.chance, figure.over) == (1, 0.5, "blocks")
        assert figure.by_patient == {name.rpartition("/")[2]: 1} and figure.trials == 3 * 24
    confused = organ_auc(organ_tiles(patients, told_by="patient"), seed=0)
    assert min(figure.value for figure in confused.values()) < 0.9


def test_organ_estimates_hold_the_value_of_each_patient():
    """Equal numbers of tiles per class: the mean over patients is the figure."""
    tiles = organ_tiles(dict.fromkeys(names(6), (0, 1, 2)), told_by="patient")
    figure = organ_estimates(tiles, seed=0)[0]["organ/knn"]
    assert list(figure.by_patient) == names(6)
    assert np.mean(list(figure.by_patient.values())) == pytest.approx(figure.value)


def test_organ_estimates_exclude_patients_without_a_common_organ():
    patients = dict.fromkeys(names(20), (0, 1, 2)) | {"patient 3": (0, 1)}
    figure = organ_estimates(organ_tiles(patients), seed=0)[0]["organ/knn"]
    assert (figure.patients, figure.chance) == (19, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("patients", "reason"),
    [({}, "no series has masks"), ({"a": (0, 1, 2)}, "a single patient has masks")],
)
def test_organ_estimates_give_a_reason_if_absent(patients, reason):
    figures, absent = organ_estimates(organ_tiles(patients) if patients else join([]), seed=0)
    assert absent["organ"] == reason and "organ/logistic" not in figures


def test_organ_estimates_within_a_patient_split_by_blocks():
    """Features tell the block: even ones know nothing of odd ones."""
    tiles = organ_tiles({"a": (0, 1, 2)})
    codes = np.random.default_rng(0).normal(size=(3 * BLOCKS, 32))
    blocked = ProbeSet(**vars(tiles) | {"features": codes[3 * tiles.block + tiles.target].astype(np.float32)})
    figures, _ = organ_estimates(blocked, seed=0)
    assert figures["organ_within/a/knn"].value < 0.7
    assert figures["organ_within/a/knn"].over == "blocks"


def slice_set(height_scale: float, count: int = 6) -> ProbeSet:
    height = np.tile(np.linspace(0, 1, 25), count)
    features = np.random.default_rng(0).normal(0, 1, (len(height), 8))
    features[:, 0] = height_scale * height
    extent = np.full(len(height), 400.0)
    block = np.tile(np.arange(25) * BLOCKS // 25, count)
    return ProbeSet(features.astype(np.float32), height, np.repeat(names(count), 25), block, extent)


def test_height_estimates_of_perfect_features():
    figures, absent = height_estimates(slice_set(1.0), seed=0)
    assert not absent and figures["z_position/ridge/r2"].value > 0.98
    error = figures["z_position/ridge/mae_mm"]
    assert error.value < 15 and error.chance == pytest.approx(104, abs=1)  # mean distance from the middle


@pytest.mark.parametrize("count", [2, 6])
def test_height_estimates_of_noise_are_at_chance(count):
    figures, _ = height_estimates(slice_set(0.0, count), seed=0)
    assert figures["z_position/ridge/r2"].value < 0.05
    assert figures["z_position/knn/mae_mm"].value > 90


def test_height_estimates_follow_their_formulas():
    data = slice_set(0.3)
    figures, _ = height_estimates(data, seed=0)
    predicted = predict(data, data.target, patient_folds(data.patient, 0), REGRESSORS["knn"], 0)
    error = predicted - data.target
    assert figures["z_position/knn/r2"].value == pytest.approx(1 - (error**2).mean() / data.target.var())
    assert figures["z_position/knn/mae_mm"].value == pytest.approx(400 * np.abs(error).mean())
