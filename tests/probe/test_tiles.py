"""Tiles with the organ at their centre and slices with their height: places, labels and features."""

import cv2
import numpy as np
import pandas as pd
import pytest

from src.core.runtime import sample_rng
from src.ct.windows import WINDOWS
from src.data.prepared import PreparedDataset, image_folder
from src.probe.frozen import HeldOut, load_run
from src.probe.linear import organ_estimates
from src.probe.tiles import body_tissue, centred_tiles, choose_centres, collect, read_stack, slice_neighbours
from tests.helpers.voco_files import write_prepared
from tests.helpers.voco_runs import write_frozen_run


def test_slice_neighbours_repeat_the_end_slices():
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


def test_body_tissue_excludes_air_gas_and_the_table():
    tissue = body_tissue(draw_body(0, 0)[..., 0], "soft")
    assert tissue[20, 24] and tissue[20, 14]
    assert not tissue[18, 30] and not tissue[0, 0] and not tissue[44:46].any()
    assert not body_tissue(np.zeros((48, 48), dtype=np.uint8), "soft").any()


def test_body_tissue_includes_fat_but_not_lung():
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
def test_collect_labels_tiles_and_slices(tmp_path, bodies, backbone):
    net = load_run(write_frozen_run(tmp_path / "run", backbone=backbone, tile=16, canvas=48))
    tiles, slices = collect(net, HeldOut.open(bodies, ("soft", "organ")), seed=0)
    assert len(slices) == 6 * 12
    np.testing.assert_allclose(slices.target, np.tile(np.arange(12) / 11, 6))
    assert set(slices.extent_mm) == {55.0}
    assert sorted(set(tiles.patient)) == ["11", "12", "13", "14", "15"]
    assert set(tiles.target) == {0, 1} and (tiles.target == 0).sum() == (tiles.target == 1).sum()
    figures, _ = organ_estimates(tiles, seed=0)
    assert figures["organ/knn"].value > 0.65  # random weights see a bright spot


def test_collect_averages_the_tiles_of_a_slice(tmp_path, bodies):
    net = load_run(write_frozen_run(tmp_path / "run", tile=16, canvas=48))
    held_out = HeldOut.open(bodies, ("soft", "organ"), patients=1)
    slices = collect(net, held_out, seed=0)[1]
    image = held_out.read("10", "100", np.array([7]), 48)
    tiles = np.stack([image[:, y : y + 16, x : x + 16] for y in (0, 16, 32) for x in (0, 16, 32)])
    np.testing.assert_allclose(
        slices.features[7], net.embed(tiles)["features"].mean(axis=0), rtol=1e-4, atol=1e-6
    )


def test_choose_centres_labels_the_pixel_at_the_centre(tmp_path, bodies):
    """The liver alone is as bright as 160; a tile is cut around it, padded where it lies at the edge."""
    net = load_run(write_frozen_run(tmp_path / "run", tile=16, canvas=48))
    held_out = HeldOut.open(bodies, ("soft", "organ"))
    stack = read_stack(net, held_out, held_out.series.iloc[1], 12)
    place, centre, organ = choose_centres(held_out, stack, 400, sample_rng(0, 0, 0))
    tiles = centred_tiles(stack.images, place, centre, 16)
    assert ((tiles[:, 0, 8, 8, 0] == 160) == (organ == 1)).all()
    assert (tiles[:, 0, 8, 8, 1] == 10 + stack.indices[place]).all()
    assert (tiles[:, 0, 8, 8, 0] > 0).all()  # neither air nor gas


def test_read_stack_makes_cubic_voxels(tmp_path, bodies):
    """48 px of 8 mm, resized to 3 x 8: voxels of 16 mm, slices of 5 mm."""
    net = load_run(write_frozen_run(tmp_path / "run", backbone="resnet10_3d", tile=8, canvas=24))
    held_out = HeldOut.open(bodies, ("soft", "organ"))
    stack = read_stack(net, held_out, held_out.series.iloc[0], 12)
    shown = stack.images[:, :, 0, 0, 1]  # (S, T), the slice's index as its grey level
    np.testing.assert_array_equal(shown[4:8], [[2, 6], [3, 7], [4, 8], [5, 9]])
