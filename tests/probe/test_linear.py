"""Probes of frozen features: who is fitted on whom, what the figures say, and what a tile shows."""

import cv2
import numpy as np
import pandas as pd
import pytest

from src.core.runtime import sample_rng
from src.ct.windows import WINDOWS
from src.data.prepared import PreparedDataset, image_folder
from src.probe.frozen import load_run
from src.probe.held_out import HeldOut
from src.probe.linear import REGRESSORS, height_figures, organ_figures, patient_folds, predict
from src.probe.tiles import (
    BLOCKS,
    ProbeSet,
    body_tissue,
    centred_tiles,
    choose_centres,
    collect,
    join,
    read_stack,
    slice_neighbours,
)
from tests.helpers.frozen_runs import write_run
from tests.helpers.voco_files import write_prepared

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
def test_every_patient_is_tested_once_by_models_that_never_saw_it(count, folds):
    patient = np.repeat(names(count), 3)
    found = patient_folds(patient, seed=0)
    assert len(found) == folds
    assert (np.sum([tested for _, tested in found], axis=0) == 1).all()
    for fitted, tested in found:
        assert not set(patient[fitted]) & set(patient[tested]) and (fitted | tested).all()


def test_a_single_patient_has_no_fold():
    assert patient_folds(np.repeat("a", 9), seed=0) == []


def test_features_that_tell_the_organ_are_always_right():
    figures, absent = organ_figures(organ_tiles(dict.fromkeys(names(6), (0, 1, 2, 3, 4, 5))), seed=0)
    assert set(figures) == {"organ/logistic", "organ/knn"} and not absent
    for figure in figures.values():
        assert figure.value == 1 and figure.chance == pytest.approx(1 / 6)
        assert (figure.trials, figure.patients, figure.over) == (6 * 6 * 24, 6, "patients")


def test_features_that_tell_patients_apart_are_worth_nothing():
    """The organs of one patient are told without fault, and say nothing about those of the next."""
    tiles = organ_tiles(dict.fromkeys(names(8), (0, 1, 2, 3)), told_by="patient")
    figures, _ = organ_figures(tiles, seed=0)
    assert all(figure.value < 0.45 for figure in figures.values())  # chance is 0.25; some codes are alike


def test_features_that_tell_nothing_are_right_by_chance():
    tiles = organ_tiles(dict.fromkeys(names(8), (0, 1, 2, 3)), told_by="nothing", count=60)
    for figure in organ_figures(tiles, seed=0)[0].values():
        assert figure.low < 0.25 < figure.high


def test_frequent_classes_count_no_more_than_rare_ones():
    """Nine times as much other tissue: a model of the tiles as they come would hardly ever name the organ."""
    tiles = organ_tiles(dict.fromkeys(names(6), (0,) * 9 + (1,)), told_by="nothing")
    tiles.features[:, 0] += 2 * NOISE * tiles.target  # best told by a threshold: 0.84
    for figure in organ_figures(tiles, seed=0)[0].values():
        assert figure.value > 0.7


def test_an_organ_that_only_some_have_labelled_belongs_to_the_rest():
    """Liver against everything else between the two; all organs within the one that has them."""
    figures, absent = organ_figures(organ_tiles({"chaos": (0, 1), "total": (0, 1, 2, 3, 4, 5)}), seed=0)
    between, within = figures["organ/logistic"], figures["organ_within/total/logistic"]
    assert (between.chance, between.trials, between.over) == (1 / 2, 8 * 24, "blocks")
    assert (within.chance, within.trials, within.patients) == (pytest.approx(1 / 6), 6 * 24, 1)
    assert within.value == 1
    assert absent == {"organ_within/chaos": "fewer than two organs are labelled"}


def test_a_patient_without_an_organ_that_nearly_all_have_is_left_out():
    patients = dict.fromkeys(names(20), (0, 1, 2)) | {"patient 3": (0, 1)}
    figure = organ_figures(organ_tiles(patients), seed=0)[0]["organ/knn"]
    assert (figure.patients, figure.chance) == (19, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("patients", "reason"),
    [({}, "no series has masks"), ({"a": (0, 1, 2)}, "a single patient has masks")],
)
def test_a_figure_that_cannot_be_had_has_a_reason(patients, reason):
    figures, absent = organ_figures(organ_tiles(patients) if patients else join([]), seed=0)
    assert absent["organ"] == reason and "organ/logistic" not in figures


def test_within_a_patient_no_block_is_both_fitted_on_and_tested():
    """Features tell the block: even ones know nothing of odd ones."""
    tiles = organ_tiles({"a": (0, 1, 2)})
    codes = np.random.default_rng(0).normal(size=(3 * BLOCKS, 32))
    blocked = ProbeSet(**vars(tiles) | {"features": codes[3 * tiles.block + tiles.target].astype(np.float32)})
    figures, _ = organ_figures(blocked, seed=0)
    assert figures["organ_within/a/knn"].value < 0.7
    assert figures["organ_within/a/knn"].over == "blocks"


def slice_set(height_scale: float, count: int = 6) -> ProbeSet:
    height = np.tile(np.linspace(0, 1, 25), count)
    features = np.random.default_rng(0).normal(0, 1, (len(height), 8))
    features[:, 0] = height_scale * height
    extent = np.full(len(height), 400.0)
    block = np.tile(np.arange(25) * BLOCKS // 25, count)
    return ProbeSet(features.astype(np.float32), height, np.repeat(names(count), 25), block, extent)


def test_features_that_tell_the_height_place_a_slice_to_the_millimetre():
    figures, absent = height_figures(slice_set(1.0), seed=0)
    assert not absent and figures["z_position/ridge/r2"].value > 0.98
    error = figures["z_position/ridge/mae_mm"]
    assert error.value < 15 and error.chance == pytest.approx(104, abs=1)  # mean distance from the middle


@pytest.mark.parametrize("count", [2, 6])
def test_features_that_tell_no_height_are_no_better_than_its_mean(count):
    figures, _ = height_figures(slice_set(0.0, count), seed=0)
    assert figures["z_position/ridge/r2"].value < 0.05
    assert figures["z_position/knn/mae_mm"].value > 90


def test_r2_and_error_are_those_of_the_formula():
    data = slice_set(0.3)
    figures, _ = height_figures(data, seed=0)
    predicted = predict(data, data.target, patient_folds(data.patient, 0), REGRESSORS["knn"], 0)
    error = predicted - data.target
    assert figures["z_position/knn/r2"].value == pytest.approx(1 - (error**2).mean() / data.target.var())
    assert figures["z_position/knn/mae_mm"].value == pytest.approx(400 * np.abs(error).mean())


def test_one_patient_has_no_height_figure():
    assert height_figures(slice_set(1.0, 1), seed=0) == ({}, {"z_position": "a single patient"})


def test_a_volume_is_read_in_cubes_and_repeats_the_ends():
    z_mm = 100 - 2.5 * np.arange(20)
    shown = slice_neighbours(z_mm, np.array([0, 10, 19]), 4, step_mm=5.0)
    assert shown.tolist() == [[0, 0, 1, 3], [7, 9, 11, 13], [16, 18, 19, 19]]
    assert slice_neighbours(z_mm, np.array([3]), 1, step_mm=5.0).tolist() == [[3]]


def draw_body(series: int, index: int) -> np.ndarray:
    """A body with gas in it, a liver on the left and a table below; the second window is the series."""
    image = np.zeros((48, 48), dtype=np.uint8)
    cv2.ellipse(image, (24, 20), (20, 14), 0, 0, 360, 100, -1)
    cv2.circle(image, (30, 18), 3, 0, -1)
    cv2.circle(image, (14, 20), 5, 160, -1)
    image[44:46] = 120
    return np.dstack([image, np.full_like(image, 10 * series + index), image])


def test_other_tissue_is_neither_air_nor_gas_nor_the_table():
    tissue = body_tissue(draw_body(0, 0)[..., 0], "soft")
    assert tissue[20, 24] and tissue[20, 14]
    assert not tissue[18, 30] and not tissue[0, 0] and not tissue[44:46].any()
    assert not body_tissue(np.zeros((48, 48), dtype=np.uint8), "soft").any()


def test_fat_is_tissue_and_lung_is_not_in_a_wide_window():
    greys = WINDOWS["wide"].grey(np.array([-100.0, -700.0]))
    image = np.repeat(np.repeat(greys[None], 24, axis=0), 24, axis=1)
    assert body_tissue(image, "wide")[:, :24].all() and not body_tissue(image, "wide")[:, 24:].any()


@pytest.fixture
def bodies(tmp_path):
    """6 patients, 5 with the liver labelled, 12 slices of 48 px, 5 mm apart, pixels of 8 mm."""
    folder = write_prepared(tmp_path / "bodies", draw_body)
    table = pd.read_csv(folder / "series.csv").assign(pixel_mm=8.0, spacing_z_mm=5.0)
    table.to_csv(folder / "series.csv", index=False)
    dataset = PreparedDataset.open(folder)
    for number, row in enumerate(dataset.series.itertuples()):
        slices = pd.DataFrame({"index": range(12), "z_mm": -5.0 * np.arange(12), "source": ""})
        slices.to_csv(image_folder(folder, row.patient_id, row.series_id) / "slices.csv", index=False)
        liver = (draw_body(0, 0)[..., 0] == 160).astype(np.uint8)
        if number:
            dataset.write_masks(row.patient_id, row.series_id, [liver] * 12)
    return folder


@pytest.mark.parametrize("backbone", ["test_efficientnet", "resnet10_3d"])
def test_tiles_and_slices_of_a_set_carry_their_labels(tmp_path, bodies, backbone):
    net = load_run(write_run(tmp_path / "run", backbone=backbone, tile=16, canvas=48))
    tiles, slices = collect(net, HeldOut.open(bodies, ("soft", "organ")), seed=0)
    assert len(slices) == 6 * 12
    np.testing.assert_allclose(slices.target, np.tile(np.arange(12) / 11, 6))
    assert set(slices.extent_mm) == {55.0}
    assert sorted(set(tiles.patient)) == ["11", "12", "13", "14", "15"]
    assert set(tiles.target) == {0, 1} and (tiles.target == 0).sum() == (tiles.target == 1).sum()
    figures, _ = organ_figures(tiles, seed=0)
    assert figures["organ/knn"].value > 0.65  # random weights see a bright spot


def test_a_slice_is_the_mean_of_its_tiles(tmp_path, bodies):
    net = load_run(write_run(tmp_path / "run", tile=16, canvas=48))
    held_out = HeldOut.open(bodies, ("soft", "organ"), patients=1)
    slices = collect(net, held_out, seed=0)[1]
    image = held_out.read("10", "100", np.array([7]), 48)
    tiles = np.stack([image[:, y : y + 16, x : x + 16] for y in (0, 16, 32) for x in (0, 16, 32)])
    np.testing.assert_allclose(
        slices.features[7], net.embed(tiles)["features"].mean(axis=0), rtol=1e-4, atol=1e-6
    )


def test_the_centre_of_a_tile_has_its_label(tmp_path, bodies):
    """The liver alone is as bright as 160; a tile is cut around it, padded where it lies at the edge."""
    net = load_run(write_run(tmp_path / "run", tile=16, canvas=48))
    held_out = HeldOut.open(bodies, ("soft", "organ"))
    stack = read_stack(net, held_out, held_out.series.iloc[1], 12)
    place, centre, organ = choose_centres(held_out, stack, 400, sample_rng(0, 0, 0))
    tiles = centred_tiles(stack.images, place, centre, 16)
    assert ((tiles[:, 0, 8, 8, 0] == 160) == (organ == 1)).all()
    assert (tiles[:, 0, 8, 8, 1] == 10 + stack.indices[place]).all()
    assert (tiles[:, 0, 8, 8, 0] > 0).all()  # neither air nor gas


def test_a_volume_reaches_as_far_along_the_body_as_its_pixels_say(tmp_path, bodies):
    """48 px of 8 mm, resized to 3 x 8: voxels of 16 mm, slices of 5 mm."""
    net = load_run(write_run(tmp_path / "run", backbone="resnet10_3d", tile=8, canvas=24))
    held_out = HeldOut.open(bodies, ("soft", "organ"))
    stack = read_stack(net, held_out, held_out.series.iloc[0], 12)
    shown = stack.images[:, :, 0, 0, 1]  # (S, T), the slice's index as its grey level
    np.testing.assert_array_equal(shown[4:8], [[2, 6], [3, 7], [4, 8], [5, 9]])
