"""Rivals of VoCo: their targets and tiles per step, learning, resumption, and the exported encoder."""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from rivals import _METHODS, RivalOptions, draw_hidden, train_rival
from study import Piece

from src.core.config import parse_options
from src.core.errors import UserError
from src.core.runtime import Runtime
from src.nn.encoder import read_encoder_file
from src.nn.schedule import LoopSettings
from src.nn.training import TrainingLoop, load_checkpoint
from src.voco.dataset import open_dataset
from tests.helpers.training_runs import assert_same_training, interrupted_after_saves, read_metrics
from tests.helpers.voco_files import draw_anatomy, draw_places, write_prepared
from tests.helpers.voco_runs import make_options

PLUS = {
    **{"extent": "whole", "depth": 12, "grid_z": 3, "jitter": 0.125, "random_crops": 5, "slices": 1},
    **{"appearance": 0.5, "tile": 32, "dropout": 0.0, "backbone": "test_efficientnet"},
}
"""The geometry of configs/voco/plus.yaml, small: 32 crops per volume."""
CROPS = 32


@pytest.fixture(params=["byol", "position", "masked"])
def method(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("anatomy") / "set", draw_anatomy, series=6)


def rival_options(data: Path, output: Path, method: str, **changes) -> RivalOptions:
    return RivalOptions(**vars(make_options(data, output, **{**PLUS, **changes})), method=method)


def open_training(options: RivalOptions) -> TrainingLoop:
    runtime = Runtime.create("fp32")
    training = _METHODS[options.method](options, open_dataset(options), runtime)
    return TrainingLoop(training, LoopSettings.of(options), runtime, options.output, {})


def test_loss_falls_on_one_batch(anatomy, tmp_path, method):
    loop = open_training(rival_options(anatomy, tmp_path, method))
    batch = next(loop.method.read(0))
    term = {"byol": "loss_prediction", "position": "loss_position", "masked": "loss_pixels"}[method]
    losses = [loop.train_on(batch, 0).metrics[term].item() for _ in range(8)]
    assert np.mean(losses[-2:]) < np.mean(losses[:2])


def test_step_encodes_as_many_tiles_as_plus(anatomy, tmp_path, method):
    loop = open_training(rival_options(anatomy, tmp_path, method))
    encoded = []
    for network in (loop.method.network, loop.method.teacher):
        first = next(layer for layer in network.encoder.modules() if isinstance(layer, nn.Conv2d))
        first.register_forward_hook(lambda layer, given, result: encoded.append(len(result)))
    loop.train_on(next(loop.method.read(0)), 0)
    assert encoded == [3 * CROPS] * (2 if method == "byol" else 1)


def test_train_rival_resumes_to_the_same_bits(anatomy, tmp_path, method):
    """Across an epoch of two batches."""
    train_rival(rival_options(anatomy, tmp_path / "whole", method, steps=4, save_every=2))
    broken = rival_options(anatomy, tmp_path / "broken", method, steps=4, save_every=2)
    with interrupted_after_saves(1):
        train_rival(broken)
    train_rival(broken)
    assert_same_training(tmp_path / "whole", tmp_path / "broken")
    assert {"loss", "embedding_std", "teacher_distance"} <= set(read_metrics(tmp_path / "whole").columns)


def test_piece_trains_a_rival_and_exports_its_average(anatomy, tmp_path):
    options = rival_options(anatomy, tmp_path / "piece", "position", steps=2)
    piece = Piece(options, ())
    piece.make()
    assert piece.read_record()["steps"] == 2
    path = tmp_path / "piece" / "encoder.safetensors"
    about = read_encoder_file(path)
    assert about.trained_by["script"] == "benchmarks/rivals.py"
    assert about.trained_by["options"]["method"] == "position"
    assert about.patients == ("10", "11", "12", "13", "14", "15")
    teacher = load_checkpoint(tmp_path / "piece" / "last.pt")["teacher"]
    exported = load_file(path)
    assert exported and all(
        torch.equal(value, teacher[f"encoder.{name}"]) for name, value in exported.items()
    )


def test_train_rival_refuses_to_resume_another_method(anatomy, tmp_path):
    train_rival(rival_options(anatomy, tmp_path, "position", steps=1))
    with pytest.raises(UserError, match="was made with --method position, not masked"):
        train_rival(rival_options(anatomy, tmp_path, "masked", steps=1))


def test_position_target_is_the_place_of_the_pixels(tmp_path):
    """Grey levels are row, column and slice; with as many positions as slices, all slices are kept."""
    data = write_prepared(tmp_path / "set", draw_places, series=4)
    loop = open_training(rival_options(data, tmp_path, "position", appearance=0.0))
    for number, batch in zip(range(3), loop.method.read(0), strict=False):
        places = loop.method.find_places(number)
        row, column, index = batch.tiles.float().mean((2, 3, 4)).unbind(-1)  # (B, K) each
        shown = torch.stack([(index + 0.5) / 12, (row + 0.5) / 48, (column + 0.5) / 48], dim=-1)
        torch.testing.assert_close(places, shown, rtol=0, atol=0.6 / 48)  # grey levels are rounded


def test_draw_hidden_hides_the_same_share_in_whole_patches():
    hidden = draw_hidden(20, 64, 8, 0.6, np.random.default_rng(0))
    assert hidden.shape == (20, 64, 64) and (hidden.sum((1, 2)) == 39 * 64).all()
    patches = hidden.reshape(20, 8, 8, 8, 8)
    assert np.array_equal(patches.all((2, 4)), patches.any((2, 4)))
    assert len(np.unique(hidden.reshape(20, -1), axis=0)) == 20


def test_masked_hides_pixels_from_the_encoder(anatomy, tmp_path):
    """Other grey levels at hidden pixels change the target, not the prediction."""
    method = open_training(rival_options(anatomy, tmp_path, "masked")).method
    images = method.network.arrange(next(method.read(0)).tiles)
    hidden = torch.from_numpy(draw_hidden(len(images), 32, 8, 0.6, np.random.default_rng(0))[:, None])
    method.network.eval()
    with torch.inference_mode():
        error, maps = method.reconstruct(images, hidden)
        other_error, other_maps = method.reconstruct(torch.where(hidden, 255 - images, images), hidden)
    assert torch.equal(maps, other_maps) and (error != other_error).all()


def test_masked_exports_statistics_of_whole_images(anatomy, tmp_path):
    loop = open_training(rival_options(anatomy, tmp_path, "masked", momentum=0.0, steps=2))
    batches = list(loop.method.read(0))
    for number, batch in enumerate(batches):
        loop.train_on(batch, number)
    teacher = loop.method.teacher
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    loop.method.export(tmp_path / "encoder.safetensors", 2)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    exported = load_file(tmp_path / "encoder.safetensors")
    for name in exported:
        if "running" not in name and "tracked" not in name:
            assert torch.equal(exported[name], before[f"encoder.{name}"])
    with torch.inference_mode():
        images = [teacher.normalise(teacher.arrange(batch.tiles)) for batch in batches]
        means = [teacher.encoder.conv_stem(each).mean((0, 2, 3)) for each in images]
    torch.testing.assert_close(exported["bn1.running_mean"], torch.stack(means).mean(0))


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_masked_learns_the_same_compiled(anatomy, tmp_path):
    for execution in ("eager", "compile"):
        options = rival_options(anatomy, tmp_path / execution, "masked", execution=execution)
        train_rival(dataclasses.replace(options, steps=2, log_every=1))
    eager, compiled = (read_metrics(tmp_path / each)["loss"].astype(float) for each in ("eager", "compile"))
    np.testing.assert_allclose(compiled, eager, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_side": 7}, "multiple of --hidden-side"),
        ({"hidden_share": 0.0}, "--hidden-share must be above 0"),
        ({"execution": "graph"}, "rivals take no"),
        ({"backbone": "resnet10_3d"}, "2D backbones"),
        ({"method": "position", "extent": "slab"}, "needs --extent whole"),
    ],
    ids=str,
)
def test_options_refuse_what_a_rival_cannot_do(tmp_path, change, message):
    options = rival_options(tmp_path, tmp_path, "masked")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(options, **change)


def test_options_read_the_preset_of_plus(tmp_path):
    given = ["--config", "configs/voco/plus.yaml", "--data", "data", "--output", "runs", "--method", "byol"]
    options = parse_options(RivalOptions, given, prog="rivals.py", description="")
    assert (options.method, options.momentum, options.grid_z) == ("byol", 0.99, 3)
    with pytest.raises(UserError, match="--method"):
        parse_options(RivalOptions, given[:-2], prog="rivals.py", description="")
