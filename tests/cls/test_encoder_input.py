"""A classifier on an encoder: by default its input is what the encoder learnt from."""

import numpy as np
import pytest
import torch

import train_cls
import train_voco
from src.cls.inputs import TrainingInputs
from src.cls.model import TraumaClassifier, load_classifier
from src.cls.options import ClassifierOptions
from src.cls.run import describe_networks
from src.cls.stacks import StackReader, crop_centre, to_channels
from src.core.config import parse_options
from src.data.prepared import PreparedDataset, as_channels
from src.data.selection import Neighbours
from src.nn.first_weights import load_first_weights
from tests.helpers.encoder_files import write_encoder
from tests.helpers.infer_runs import SMALL, read_report, submit

FAR = Neighbours(3, 40.0)  # of slices 18 mm apart: not the next ones


@pytest.fixture(scope="module")
def far_run(tiny, tmp_path_factory):
    """A pre-training run on one window and three slices 40 mm apart."""
    output = tmp_path_factory.mktemp("far") / "run"
    size = "--canvas 48 --depth 4 --tile 16 --slices 1 --batch 2 --projection 8 --steps 2 --foreground 0"
    every = "--log-every 1 --save-every 1 --workers 0 --backbone test_resnet"
    shown = "--windows soft --neighbours 3 --neighbour-mm 40"
    train_voco.main(f"--data {tiny.prepared} --output {output} {size} {every} {shown}".split())
    return output / "encoder.safetensors"


def test_neighbours_go_from_pretraining_through_the_classifier_to_raw_images(tiny, far_run, tmp_path, capsys):
    tables = f"--data {tiny.prepared} --labels {tiny.labels} --folds {tiny.folds}"
    train_cls.main(f"{tables} --output {tmp_path / 'run'} {SMALL} --encoder {far_run} --fold 0".split())
    assert "learnt from" not in capsys.readouterr().err
    _, spec = load_classifier(tmp_path / "run" / "fold0" / "model.safetensors")
    assert (spec.view.windows, spec.view.neighbours, spec.view.neighbour_mm) == (("soft",), 3, 40.0)
    raw = submit(tiny.raw, tmp_path / "run", tiny.sample, tmp_path)
    assert len(raw) == 3 and np.isfinite(raw).all(axis=None)
    assert (read_report(tmp_path).status == "ok").all() and raw.nunique().max() > 1


@pytest.mark.parametrize(
    ("changes", "windows", "line"),
    [
        ({}, ("wide", "soft"), None),
        ({"windows": "soft wide"}, ("soft", "wide"), None),
        ({"windows": "soft"}, ("soft",), "wide soft of single slices, its input is now soft of"),
        ({"neighbours": 3}, ("wide", "soft"), "its input is now wide soft of 3 adjacent slices"),
    ],
    ids=str,
)
def test_train_cls_takes_the_input_of_the_encoder(run_arguments, tmp_path, capsys, changes, windows, line):
    path = tmp_path / "encoder.safetensors"
    write_encoder(path, windows=("wide", "soft"), mean=(0.4, 0.5), std=(0.2, 0.3))
    train_cls.main(run_arguments(fold="0", epochs=1, encoder=path, **changes))
    _, spec = load_classifier(tmp_path / "run/fold0/model.safetensors")
    assert spec.view.windows == windows
    printed = capsys.readouterr()
    lines = [each for each in (printed.out + printed.err).splitlines() if "its input is now" in each]
    assert len(lines) == (line is not None) and all(line in each for each in lines)
    assert ("its input is now" in printed.err) == (changes == {"windows": "soft"})


def test_train_cls_takes_all_windows_without_one_of_the_encoder(run_arguments, tmp_path, capsys):
    path = tmp_path / "encoder.safetensors"
    write_encoder(path, windows=("lung",), mean=(0.4,), std=(0.2,))
    train_cls.main(run_arguments(fold="0", epochs=1, encoder=path))
    _, spec = load_classifier(tmp_path / "run/fold0/model.safetensors")
    assert spec.view.windows == ("soft", "organ", "wide")
    assert capsys.readouterr().err.count("its input is now") == 1


@pytest.mark.parametrize(
    ("preset", "windows", "neighbours"),
    [
        ("cnn_lstm", ("soft", "organ", "wide"), Neighbours()),
        ("cnn_lstm", ("wide",), Neighbours()),
        ("cnn_lstm", ("soft",), FAR),
        ("organ_aware", ("soft", "organ", "wide"), Neighbours(3)),
        ("organ_aware", ("soft",), FAR),
    ],
)
def test_features_of_a_preset_are_those_of_the_encoders_own_input(
    tiny, tmp_path, preset, windows, neighbours
):
    """Also beside masks, before any training."""
    path = tmp_path / "encoder.safetensors"
    about = {"neighbours": neighbours.count, "neighbour_mm": neighbours.distance_mm}
    greys = {"mean": (0.4, 0.5, 0.6)[: len(windows)], "std": (0.2, 0.3, 0.4)[: len(windows)]}
    encoder = write_encoder(path, windows=windows, **greys, **about)

    size = f"--slices 4 --crop 48 --encoder {path} --workers 0"
    given = f"--data {tiny.prepared} --labels {tiny.labels} --folds {tiny.folds} --output {tmp_path / 'run'}"
    words = f"--config configs/cls/{preset}.yaml {given} {size}".split()
    options = parse_options(ClassifierOptions, words, prog="", description="")
    inputs = TrainingInputs.read(options)
    spec = describe_networks(options, inputs)[0].spec
    view, key = spec.view, next(iter(inputs.prepared.slice_counts))
    model = TraumaClassifier(spec).eval()
    load_first_weights(model.encoder, path, view.windows, view.neighbours, view.mask_channels)
    stack = StackReader(inputs.prepared, inputs.organs).read(key, view, 0.5)
    shown = torch.from_numpy(to_channels(crop_centre(stack, view), view))

    prepared = PreparedDataset.open(tiny.prepared)
    places = neighbours.find(stack.plan.indices, prepared.slice_counts[key], lambda: prepared.z_mm(*key))
    images = prepared.read_slices(*key, places.ravel())[..., list(prepared.channels(windows))]
    own = as_channels(images.reshape(*places.shape, *images.shape[1:]))  # (T, H, W, C)
    pixels = torch.from_numpy(np.ascontiguousarray(own.transpose(0, 3, 1, 2))).float() / 255
    mean, std = (torch.tensor(values * neighbours.count).view(-1, 1, 1) for values in greys.values())
    with torch.inference_mode():
        expected, found = encoder((pixels - mean) / std), model.encoder(model.normalise(shown))
    centre = expected.mean(0)
    cosine = torch.nn.functional.cosine_similarity(expected - centre, found - centre)
    assert cosine.min() > 0.95
