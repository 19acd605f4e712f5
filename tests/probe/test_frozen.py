"""Frozen networks of finished runs, and reading of held-out slices."""

from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.errors import UserError
from src.data.selection import Neighbours
from src.probe.frozen import HeldOut, load_encoder, load_run
from tests.helpers.doubtful_sets import mark_doubtful
from tests.helpers.encoder_files import write_encoder
from tests.helpers.voco_files import draw_indices, write_prepared
from tests.helpers.voco_runs import write_frozen_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_frozen_run(tmp_path_factory.mktemp("runs") / "voco")


def test_load_encoder_draws_random_weights_from_the_seed():
    random, same, differs = (
        load_encoder("none", tile=32, backbone="test_efficientnet", seed=seed).network.state_dict()
        for seed in (0, 0, 1)
    )
    first = "encoder.conv_stem.weight"
    assert torch.equal(random[first], same[first]) and not torch.equal(random[first], differs[first])


def test_load_encoder_takes_the_input_that_a_file_records(tmp_path):
    """Features are those of the encoder in the file, on its own windows, neighbours and grey levels."""
    given = {"windows": ("wide", "soft"), "neighbours": 3, "mean": (0.1, 0.2), "std": (0.3, 0.4)}
    encoder = write_encoder(tmp_path / "encoder.safetensors", neighbour_mm=5.0, **given)
    net = load_encoder(tmp_path / "encoder.safetensors", tile=32)
    assert (net.windows, net.neighbours, net.tile, net.run) == (
        ("wide", "soft"),
        Neighbours(3, 5.0),
        32,
        None,
    )
    crops = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32, 6)).astype(np.uint8)
    mean, std = (torch.tensor(given[name] * 3).view(6, 1, 1) for name in ("mean", "std"))
    pixels = torch.from_numpy(crops[:, 0]).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = encoder((pixels - mean) / std).numpy()
    found = net.embed(crops)
    assert list(found) == ["features"]
    np.testing.assert_allclose(found["features"], expected, rtol=1e-4, atol=1e-5)


def test_load_encoder_finds_the_backbone_of_a_run(run):
    """A checkpoint of train_voco.py is a file like any other: features of its teacher."""
    net, whole = load_encoder(run / "last.pt", ("soft", "organ"), 32, "test_efficientnet"), load_run(run)
    crops = np.random.default_rng(0).integers(0, 256, (3, 2, 32, 32, 2)).astype(np.uint8)
    np.testing.assert_array_equal(net.embed(crops)["features"], whole.embed(crops)["features"])


def test_load_encoder_gives_3d_backbones_as_many_slices_as_pixels():
    net = load_encoder("none", tile=8, backbone="resnet10_3d")
    assert net.is_volume and net.slices == 8
    assert len(net.embed(np.zeros((2, 8, 8, 8, 1), np.uint8))["features"]) == 2


def test_load_encoder_needs_a_backbone(run):
    with pytest.raises(UserError, match="is no encoder file, which would name its backbone"):
        load_encoder(run / "last.pt")


def test_load_run_takes_the_teacher(run):
    saved = torch.load(run / "last.pt", weights_only=True)
    network = load_run(run).network.state_dict()
    for name, tensor in saved["teacher"].items():
        assert torch.equal(network[name], tensor)
    assert any((saved["student"][name] != tensor).any() for name, tensor in saved["teacher"].items())


def test_load_run_puts_a_teacher_head_on_the_students_backbone(tmp_path):
    folder = write_frozen_run(tmp_path / "run", shared_backbone=True)
    saved = torch.load(folder / "last.pt", weights_only=True)
    for name, tensor in load_run(folder).network.state_dict().items():
        assert torch.equal(tensor, saved["teacher" if name.startswith("head.") else "student"][name])


def test_embed_does_not_depend_on_the_batch(run):
    net = load_run(run)
    crops = np.random.default_rng(0).integers(0, 256, (300, 1, 32, 32, 2)).astype(np.uint8)
    together, alone = net.embed(crops), net.embed(crops[260:261])
    for name, values in alone.items():
        np.testing.assert_allclose(together[name][260:261], values, rtol=1e-4, atol=1e-5)


def test_held_out_reads_slices_in_the_order_requested(tmp_path):
    held_out = HeldOut.open(write_prepared(tmp_path, draw_indices), ("organ", "soft"))
    images = held_out.read("12", "102", np.array([5, 1, 5]), 24)
    assert images[:, 7, 7].tolist() == [[5, 2], [1, 2], [5, 2]]  # channels: slice, then series


def test_held_out_reads_the_neighbours_of_each_slice(tmp_path):
    data = write_prepared(tmp_path, draw_indices, slices=8)
    held_out = HeldOut.open(data, ("organ", "soft"), neighbours=Neighbours(3, 10.0))  # slices 5 mm apart
    images = held_out.read("12", "102", np.array([4, 0]), 24)
    assert images[:, 7, 7].tolist() == [[2, 2, 4, 2, 6, 2], [0, 2, 0, 2, 2, 2]]


def test_held_out_excludes_doubtful_series(tmp_path):
    data = mark_doubtful(write_prepared(tmp_path, draw_indices, series=4), ["100", "102"])
    held_out = HeldOut.open(data, ("soft",))
    assert held_out.series["series_id"].tolist() == ["101", "103"]
    assert HeldOut.open(data, ("soft",), patients=1).series["series_id"].tolist() == ["101"]
    mark_doubtful(data, ["101", "103"])
    with pytest.raises(UserError, match="no usable series: all 4 are doubtful"):
        HeldOut.open(data, ("soft",))
