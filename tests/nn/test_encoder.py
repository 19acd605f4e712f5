"""Backbones, and encoder.safetensors as plain timm and the kit read it."""

import pytest
import timm
import torch
from packaging.version import Version

from src.core.errors import UserError
from src.nn.encoder import (
    EncoderFile,
    built_size,
    check_input_size,
    create_encoder,
    encoder_width,
    fill_network,
    read_encoder_file,
    require_true_bf16,
)
from src.nn.first_weights import load_first_weights
from src.nn.weights_file import save_weights
from tests.helpers.encoder_files import WINDOWS, write_encoder

NAME = "test_efficientnet"


@pytest.mark.parametrize("name", ["test_efficientnet", "resnet10t", "mobilenetv3_small_050"])
def test_create_encoder_gives_one_vector_per_slice_of_encoder_width(name):
    encoder = create_encoder(name, 2).eval()
    with torch.inference_mode():
        assert encoder(torch.zeros(2, 2, 64, 64)).shape == (2, encoder_width(encoder))


def test_save_encoder_writes_a_file_that_plain_timm_loads(tmp_path):
    path = tmp_path / "encoder.safetensors"
    encoder = write_encoder(path)
    plain = timm.create_model(NAME, in_chans=3, num_classes=0, checkpoint_path=str(path)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(plain(images), encoder(images), rtol=0, atol=0)


def test_read_encoder_file_returns_what_was_saved(tmp_path):
    path, more = tmp_path / "encoder.safetensors", {"trained_by": {"steps": 7}, "patients": ("12", "9")}
    write_encoder(path, **more)
    assert read_encoder_file(path) == EncoderFile(NAME, 3, (0.5,) * 3, (0.25,) * 3, WINDOWS, **more)


def test_read_encoder_file_of_an_earlier_version(tmp_path):
    """Without the entries that were added later; its first layer is adapted to new neighbours as ever."""
    encoder = create_encoder(NAME, 3)
    about = {"name": NAME, "in_channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3, "windows": WINDOWS}
    save_weights(tmp_path / "old.safetensors", encoder.state_dict(), **about)
    found = read_encoder_file(tmp_path / "old.safetensors")
    assert (found.size, found.neighbours, found.neighbour_mm, found.patients) == (0, 1, 0.0, ())
    first = load_first_weights(create_encoder(NAME, 9), tmp_path / "old.safetensors", WINDOWS, slices=3)
    assert not first.report.missing and first.mean == (0.5,) * 3


def test_check_input_size_refuses_images_that_patches_do_not_divide():
    check_input_size(create_encoder(NAME, 3, 96), 3, 96)
    check_input_size(create_encoder("vit_tiny_patch16_224", 3, 96), 3, 96)
    with pytest.raises(UserError, match=r"cannot take images of 100 px .*: choose a multiple of 32"):
        check_input_size(create_encoder("maxvit_nano_rw_256", 3, 100), 3, 100)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("coat_lite_tiny", {64: 64, 224: 0}),
        ("maxvit_nano_rw_256", {64: 64, 256: 0}),
        ("coatnet_nano_rw_224", {96: 96}),
        ("swin_tiny_patch4_window7_224", {96: 96}),
        ("vit_tiny_patch16_224", {192: 192}),
        ("test_vit", {96: 0}),  # interpolates its positions for every image
        (NAME, {64: 0, 100: 0}),
    ],
)
def test_create_encoder_is_built_for_the_size_where_it_must_be(name, sizes):
    for size, built in sizes.items():
        assert built_size(name, size) == built
        encoder = create_encoder(name, 1, size).eval()
        with torch.inference_mode():
            assert encoder(torch.zeros(1, 1, size, size)).shape == (1, encoder_width(encoder))


def test_create_encoder_builds_swin_v2_where_timm_is_new_enough():
    """Windows of 8 do not divide the 24 patches of 96 px in the second stage."""
    name = "swinv2_tiny_window8_256"
    if Version(timm.__version__) >= Version("1.0.31"):
        check_input_size(create_encoder(name, 3, 96), 3, 96)
        return
    with pytest.raises(UserError, match=r"^the backbone cannot take images of 96 px .*need timm 1\.0\.31"):
        create_encoder(name, 3, 96)


@pytest.mark.parametrize(("installed", "hint"), [("1.0.30", "need timm 1.0.31 or newer"), ("1.0.31", "")])
def test_messages_name_the_timm_that_is_needed(installed, hint, monkeypatch):
    monkeypatch.setattr("timm.__version__", installed)
    with pytest.raises(UserError, match=f"no backbone 'resnet9000'.*{hint}") as caught:
        create_encoder("resnet9000", 3)
    assert hint or "timm 1." not in str(caught.value)


def test_fill_network_refuses_what_another_timm_wrote():
    encoder = create_encoder(NAME, 3)
    weights = encoder.state_dict()
    weights["renamed.weight"] = weights.popitem()[1]
    with pytest.raises(UserError, match=r"^a/b does not fit the network that timm 1\.\S+ builds: it was"):
        fill_network(encoder, weights, "a/b")


def test_create_encoder_refuses_unknown_names_with_close_ones():
    with pytest.raises(UserError, match=r"no weights 'foo' of test_vit; it has test_vit\.r160_in1k"):
        create_encoder("test_vit.foo", 3, 64)
    with pytest.raises(UserError, match="no backbone 'resnet9000'"):
        create_encoder("resnet9000", 3)


def test_require_true_bf16_finds_strides_over_one_pixel():
    encoder = create_encoder("mobilenetv3_small_050", 2).train()
    with pytest.raises(UserError, match="wrong gradients for images of 16 px"):
        require_true_bf16(encoder, 2, 16)
    assert encoder.training and not any(layer._forward_pre_hooks for layer in encoder.modules())
    require_true_bf16(encoder, 2, 32)
    require_true_bf16(create_encoder("test_resnet", 2), 2, 16)  # has no depthwise convolutions
