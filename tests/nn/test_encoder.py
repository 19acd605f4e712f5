"""Backbones, and encoder.safetensors as plain timm and the kit read it."""

import pytest
import timm
import torch

from src.core.errors import UserError
from src.nn.encoder import (
    EncoderFile,
    check_input_size,
    create_encoder,
    encoder_width,
    read_encoder_file,
    require_true_bf16,
)
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


def test_check_input_size_refuses_a_fixed_size_backbone():
    check_input_size(create_encoder(NAME, 3), 3, 96)
    with pytest.raises(UserError, match="cannot take images of 96 px"):
        check_input_size(create_encoder("vit_tiny_patch16_224", 3), 3, 96)


def test_create_encoder_refuses_unknown_names_with_close_ones():
    with pytest.raises(UserError, match="no backbone 'resnet9000'"):
        create_encoder("resnet9000", 3)


def test_require_true_bf16_finds_strides_over_one_pixel():
    encoder = create_encoder("mobilenetv3_small_050", 2).train()
    with pytest.raises(UserError, match="wrong gradients for images of 16 px"):
        require_true_bf16(encoder, 2, 16)
    assert encoder.training and not any(layer._forward_pre_hooks for layer in encoder.modules())
    require_true_bf16(encoder, 2, 32)
    require_true_bf16(create_encoder("test_resnet", 2), 2, 16)  # has no depthwise convolutions
