"""Adjacent slices as channels: which they are, in which order, and what a run with them leaves behind."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm

from src.cls.stacks import StackReader, crop_centre, to_channels
from src.cls.views import StackView
from src.data.prepared import PreparedDataset, image_folder
from src.nn.encoder import read_encoder_file
from src.probe.frozen import load_run
from src.report.voco_pictures import draw_predictions
from src.voco.dataset import open_dataset
from src.voco.options import VocoOptions
from src.voco.run import pretrain
from tests.helpers.training_runs import assert_same_training, interrupted_after_saves
from tests.helpers.voco_files import draw_anatomy, draw_indices, draw_noise, write_prepared, write_slice_table
from tests.helpers.voco_runs import make_options

WHOLE_SLICES = {"extent": "whole", "grid": 1, "canvas": 48, "tile": 48, "foreground": 0.0}
"""A crop is all of every slice."""


def open_set(folder: Path, depth: int, **changes):
    given = WHOLE_SLICES | {"depth": depth, "slices": depth, "batch": 2, "windows": ("organ",)}
    return open_dataset(VocoOptions(data=(folder,), output=Path("unused"), **given | changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"neighbours": 3}, [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4]]),
        ({"neighbours": 3, "neighbour_mm": 9.0}, [[0, 0, 2], [0, 1, 3], [0, 2, 4], [1, 3, 4], [2, 4, 4]]),
    ],
    ids=str,
)
def test_dataset_channels_are_the_neighbours_of_each_slice(tmp_path, changes, expected):
    dataset = open_set(write_prepared(tmp_path, draw_indices, slices=5), 5, **changes)
    for tiles in dataset[0, 1].tiles:
        assert tiles[:, 7, 7].tolist() == expected


@pytest.mark.parametrize("distance_mm", [0.0, 7.0])
def test_dataset_channels_equal_those_of_the_classifier(tmp_path, distance_mm):
    """In a series with uneven distances, with windows in another order than the prepared ones."""
    folder, windows = write_prepared(tmp_path, draw_noise, slices=9), ("wide", "soft")
    z_mm = -np.cumsum([0, 1, 2, 5, 5, 1, 3, 8, 2])
    write_slice_table(image_folder(folder, "11", "101"), z_mm)
    dataset = open_set(folder, 9, neighbours=3, neighbour_mm=distance_mm, windows=windows)
    view = StackView(windows, size=48, crop=48, slices=9, neighbours=3, neighbour_mm=distance_mm)
    stack = StackReader(PreparedDataset.open(folder), None).read(("11", "101"), view, 0.5)
    expected = to_channels(crop_centre(stack, view), view).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(dataset[0, 1].tiles[-1].numpy(), expected, strict=True)


def test_dataset_reads_only_the_slices_and_their_neighbours_each_once(tmp_path, monkeypatch):
    folder = write_prepared(tmp_path, draw_indices, series=1, slices=20)
    dataset = open_set(folder, 20, slices=4, neighbours=3)
    reads = []
    monkeypatch.setattr(
        "src.voco.index.read_windows",
        lambda source, indices, *rest: reads.extend(indices) or np.zeros((len(indices), 48, 48, 1), np.uint8),
    )
    dataset[0, 0]
    assert reads == [1, 2, 3, 6, 7, 8, 11, 12, 13, 16, 17, 18]


def test_dataset_turns_neighbours_around_with_the_slices_of_a_crop(tmp_path):
    folder = write_prepared(tmp_path, draw_noise, slices=6)
    plain, flipped = (
        open_set(folder, 6, neighbours=3, windows=("soft", "organ"), crop_flip=flip)[0, 0].tiles.numpy()
        for flip in (0.0, 1.0)
    )
    by_neighbour = plain.reshape(*plain.shape[:-1], 3, 2)[..., ::-1, :].reshape(plain.shape)
    np.testing.assert_array_equal(flipped, by_neighbour[:, ::-1, ::-1, ::-1])


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("anatomy") / "set", draw_anatomy, series=6)


@pytest.fixture(scope="module")
def finished(anatomy, tmp_path_factory):
    changes = {"windows": ("soft", "wide"), "neighbours": 3, "neighbour_mm": 10.0, "picture_every": 6}
    options = make_options(anatomy, tmp_path_factory.mktemp("finished") / "run", appearance=0.5, **changes)
    pretrain(options, draw_predictions)
    return options


def test_pretrain_with_neighbours_resumes_to_the_same_result(finished, tmp_path):
    broken = dataclasses.replace(finished, output=tmp_path / "broken")
    with interrupted_after_saves(3):
        pretrain(broken, draw_predictions)
    pretrain(broken, draw_predictions)
    assert_same_training(finished.output, broken.output)
    assert (broken.output / "pictures" / "step_0000006.png").exists()


def test_export_records_the_neighbours(finished):
    path = finished.output / "encoder.safetensors"
    about = read_encoder_file(path)
    assert (about.in_channels, about.windows) == (6, ("soft", "wide"))
    assert (about.neighbours, about.neighbour_mm) == (3, 10.0)
    assert len(about.mean) == len(about.std) == 2  # one per window
    plain = timm.create_model(about.name, in_chans=6, num_classes=0, checkpoint_path=str(path))
    assert plain.conv_stem.weight.shape[1] == 6


def test_pretrain_continues_from_an_encoder_with_neighbours(finished, tmp_path):
    path = finished.output / "encoder.safetensors"
    options = dataclasses.replace(finished, encoder=path, output=tmp_path / "run", steps=1, picture_every=0)
    pretrain(options)
    assert read_encoder_file(tmp_path / "run" / "encoder.safetensors").in_channels == 6


def test_load_run_measures_with_the_neighbours_of_the_run(finished):
    net = load_run(finished.output)
    assert (net.neighbours.count, net.neighbours.distance_mm) == (3, 10.0)
    assert net.embed(np.zeros((2, 2, 16, 16, 6), np.uint8))["features"].shape[0] == 2
