"""The decoder on a classifier's encoder: same features, full-size logits, gradients, and what it refuses."""

import pytest
import torch

from src.core.errors import UserError
from src.nn.encoder import create_encoder
from src.nn.organ_decoder import CLASSES, OrganDecoder

BACKBONES = ("test_efficientnet", "resnet10t", "test_convnext", "mobilenetv3_small_050")


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("size", [64, 72])
def test_organ_decoder_keeps_features_and_gives_logits_of_the_image_size(backbone, size):
    torch.manual_seed(0)
    encoder = create_encoder(backbone, 2)
    decoder = OrganDecoder(encoder, 2, size).eval()
    pixels = torch.randn(4, 2, size, size)
    with torch.inference_mode():
        chosen = torch.tensor([0, 3])
        features, *maps = decoder.encode(encoder.eval(), pixels, chosen)
        logits = decoder(pixels[chosen], maps)
        torch.testing.assert_close(features, encoder(pixels))
    assert logits.shape == (2, CLASSES, size, size)


def test_organ_decoder_loss_reaches_the_encoder():
    encoder = create_encoder("test_efficientnet", 1)
    decoder = OrganDecoder(encoder, 1, 32)
    pixels, chosen = torch.randn(2, 1, 32, 32), torch.tensor([1])
    _, *maps = decoder.encode(encoder.train(), pixels, chosen)
    logits = decoder(pixels[chosen], maps)
    logits.square().mean().backward()
    assert next(encoder.parameters()).grad.abs().sum() > 0
    assert all(part.grad is not None for part in decoder.parameters())


def test_organ_decoder_refuses_a_backbone_with_maps_of_one_size():
    with pytest.raises(UserError, match="of which a U-Net needs two"):
        OrganDecoder(create_encoder("test_vit", 1), 1, 160)
