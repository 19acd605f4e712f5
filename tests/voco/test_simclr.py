"""SimCLR: its views, tiles per step, learning, resumption, and what follows from the options."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from src.core.runtime import Runtime
from src.nn.encoder import read_encoder_file
from src.nn.schedule import LoopSettings
from src.nn.training import TrainingLoop
from src.probe.frozen import load_run
from src.report.curves import plot_metrics
from src.voco.dataset import open_dataset
from src.voco.run import pretrain
from src.voco.simclr import SimClrPretraining
from tests.helpers.training_runs import assert_same_training, interrupted_after_saves, read_metrics
from tests.helpers.voco_files import draw_anatomy, draw_places, write_prepared
from tests.helpers.voco_runs import make_options

PLUS = {
    **{"extent": "whole", "depth": 12, "grid_z": 3, "jitter": 0.125, "random_crops": 6, "slices": 1},
    **{"appearance": 0.5, "tile": 32, "dropout": 0.0, "backbone": "test_efficientnet"},
}
"""The geometry of configs/voco/plus.yaml, small: 33 crops of a volume, of which 16 are shown twice."""


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("anatomy") / "set", draw_anatomy, series=6)


def simclr_options(data: Path, output: Path, **changes):
    return make_options(data, output, **{**PLUS, "objective": "simclr", **changes})


def open_training(options) -> TrainingLoop:
    runtime = Runtime.create("fp32")
    method = SimClrPretraining(options, open_dataset(options), runtime)
    return TrainingLoop(method, LoopSettings.of(options), runtime, options.output, {})


def test_samples_are_two_views_of_the_same_crops(tmp_path):
    """Grey levels are row, column and slice, so that the means of a view tell where it lies."""
    data = write_prepared(tmp_path / "set", draw_places, series=1)
    options = simclr_options(data, tmp_path, appearance=0.0, batch=2)
    sample = open_dataset(options)[0, 0]
    assert sample.tiles.shape == (options.crops, 1, 32, 32, 3) == (32, 1, 32, 32, 3)
    assert sample.label.shape == (0,)
    row, column, index = sample.tiles.float().mean((1, 2, 3)).view(2, 16, 3).unbind(-1)
    assert torch.equal(index[0], index[1])  # both show one slice
    crop = 48 / 3
    assert (row[0] - row[1]).abs().max() < crop and (column[0] - column[1]).abs().max() < crop
    assert not (sample.tiles[:16] == sample.tiles[16:]).flatten(1).all(1).any()
    levels = sample.tiles[:, 0, :, :, 1].float()  # rise to the right, or to the left where mirrored
    is_mirrored = levels[:, :, 0].mean(1) > levels[:, :, -1].mean(1)
    assert 0 < is_mirrored.sum() < 32


def test_views_of_volumes_are_of_all_their_slices(tmp_path):
    data = write_prepared(tmp_path / "set", draw_places, series=1)
    tiles = open_dataset(simclr_options(data, tmp_path, slices=3, appearance=0.0))[0, 0].tiles
    places = tiles.float().mean((2, 3))  # (K, T, 3)
    assert (places[:, :, :2].std(dim=1) < 0.01).all() and (places[:, :, 2].diff(dim=1) > 0).all()


def test_a_step_encodes_the_views_once(anatomy, tmp_path):
    loop, encoded = open_training(simclr_options(anatomy, tmp_path)), []
    for network in (loop.method.network, loop.method.teacher):
        first = next(layer for layer in network.encoder.modules() if isinstance(layer, nn.Conv2d))
        first.register_forward_hook(lambda layer, given, result: encoded.append(len(result)))
    loop.train_on(next(loop.method.read(0)), 0)
    assert encoded == [3 * 32]


def test_loss_falls_on_one_batch(anatomy, tmp_path):
    loop = open_training(simclr_options(anatomy, tmp_path))
    batch = next(loop.method.read(0))
    losses = [loop.train_on(batch, 0).metrics["loss_contrast"].item() for _ in range(8)]
    assert np.mean(losses[-2:]) < np.mean(losses[:2]) < 1.2 * np.log(3 * 32)


def test_pretrain_by_simclr_resumes_to_the_same_result(anatomy, tmp_path, capsys):
    """Across an epoch of two batches; encoder, curves and probes read it."""
    pretrain(simclr_options(anatomy, tmp_path / "whole", steps=4, save_every=2))
    broken = simclr_options(anatomy, tmp_path / "broken", steps=4, save_every=2)
    with interrupted_after_saves(1):
        pretrain(broken)
    pretrain(broken)
    assert_same_training(tmp_path / "whole", tmp_path / "broken")
    assert "(contrast " in capsys.readouterr().out
    assert {"loss", "loss_contrast", "embedding_std", "teacher_distance"} <= set(
        read_metrics(tmp_path / "whole").columns
    )
    about = read_encoder_file(tmp_path / "whole" / "encoder.safetensors")
    assert about.trained_by["options"]["objective"] == "simclr"
    assert plot_metrics(tmp_path / "whole").is_file()
    crops = np.zeros((2, 1, 32, 32, 3), np.uint8)
    assert load_run(tmp_path / "whole").embed(crops)["projection"].shape == (2, 32)


def test_pretrain_by_simclr_trains_backbones_on_volumes(anatomy, tmp_path):
    pretrain(simclr_options(anatomy, tmp_path, backbone="resnet10_3d", slices=8, tile=16, steps=1))
    assert read_metrics(tmp_path)["loss"].astype(float).notna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"view_area": 0.0}, "--view-area must be above 0"),
        ({"view_area": 1.5}, "--view-area must be above 0 and at most 1"),
        ({"picture_every": 1}, "--picture-every draws placed crops"),
    ],
    ids=str,
)
def test_options_refuse_what_simclr_cannot_do(tmp_path, change, message):
    options = simclr_options(tmp_path, tmp_path)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(options, **change)
