"""First weights: files of every kind, the grey levels that they record, and the patients."""

import pytest
import torch

from src.core.errors import UserError
from src.nn.encoder import create_encoder
from src.nn.first_weights import load_first_weights, patients_seen_by, recorded_greys
from tests.helpers.encoder_files import WINDOWS, write_encoder

NAME = "test_efficientnet"


@pytest.fixture
def saved(tmp_path):
    """An encoder file that records other grey levels than the kit's own, and the encoder in it."""
    path, greys = tmp_path / "encoder.safetensors", {"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}
    return path, write_encoder(path, patients=("12", "9"), **greys)


def test_load_first_weights_takes_the_recorded_grey_levels_by_window(saved):
    first = load_first_weights(create_encoder(NAME, 2), saved[0], ("wide", "soft"))
    assert (first.mean, first.std) == ((0.3, 0.1), (3.0, 1.0))
    assert not first.report.missing and len(first.report.adapted) == 1


@pytest.mark.parametrize(("backbone", "hint"), [(NAME, " (--first-weights imagenet"), ("seresnet18", "")])
def test_load_first_weights_recommends_imagenet_where_timm_has_it(backbone, hint):
    first = load_first_weights(create_encoder(backbone, 1), "none", ("soft",))
    assert str(first).startswith(f"random{hint}") and ("(" in str(first)) == bool(hint)


def test_load_first_weights_gives_the_slice_its_kernels_and_neighbours_and_masks_none(saved):
    """The input of a classifier: three adjacent slices of two windows each, then a mask."""
    network, (path, encoder) = create_encoder(NAME, 7), saved
    load_first_weights(network, path, ("wide", "soft"), slices=3, mask_channels=1)
    kernel, own = network.conv_stem.weight, encoder.conv_stem.weight
    torch.testing.assert_close(kernel[:, 2:4], own[:, [2, 0]] * 3 / 2)
    assert not kernel[:, :2].any() and not kernel[:, 4:].any()


def test_load_first_weights_takes_other_grey_levels_for_unknown_windows(saved):
    path, _ = saved
    first = load_first_weights(create_encoder(NAME, 3), path, ("soft", "organ", "lung"))
    assert (first.mean, first.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert recorded_greys(path, ("lung",)) == ((0.5,), (0.25,))  # with another number, the kit's own


@pytest.mark.parametrize(
    ("content", "mean", "std"),
    [
        (
            lambda weights: {f"student.{name}": value for name, value in weights.items()},
            (0.0,) * 3,
            (1.0,) * 3,
        ),
        (
            lambda weights: {
                "teacher": {f"encoder.{name}": value for name, value in weights.items()}
                | {"mean": torch.full((3,), 0.125), "std": torch.full((3,), 0.5)}
            },
            (0.125,) * 3,
            (0.5,) * 3,
        ),
        (lambda weights: weights, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet's colours
    ],
    ids=["published", "checkpoint of a run", "plain timm"],
)
def test_load_first_weights_knows_the_grey_levels_of_checkpoints(tmp_path, content, mean, std):
    path = tmp_path / "given.pth"
    torch.save(content(create_encoder(NAME, 3).state_dict()), path)
    first = load_first_weights(create_encoder(NAME, 3), path, WINDOWS)
    assert (first.mean, first.std) == (mean, std)
    assert recorded_greys(path, WINDOWS) is None and patients_seen_by(path) == ()


def test_load_first_weights_says_that_weights_are_random():
    encoder = create_encoder(NAME, 2)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    first = load_first_weights(encoder, "none", ("soft", "wide"))
    assert str(first).startswith("random (--first-weights imagenet") and first.report is None
    assert (first.mean, first.std) == ((0.5, 0.5), (0.25, 0.25))
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_load_first_weights_refuses_a_source_that_is_no_file(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*imagnet: expected weights of an encoder"):
        load_first_weights(create_encoder(NAME, 1), tmp_path / "imagnet", ("soft",))


def test_patients_seen_by_reads_the_encoder_file(saved):
    assert patients_seen_by(saved[0]) == ("12", "9")
