"""A segmentation_models_pytorch decoder on a classifier's encoder: organs as an auxiliary task."""

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from src.core.errors import UserError

CLASSES = 5
"""Number of classes: background, liver, spleen, kidneys, bowel."""

_WIDTHS = (128, 64, 48, 32, 16)
"""Channels of the decoder's stages; with fewer stages, the deepest ones are omitted."""


class OrganDecoder(nn.Module):
    """U-Net decoder on the encoder's feature maps.

    Args:
        encoder: a timm backbone with `forward_intermediates`.
        channels: channels of the images.
        size: side of the images in pixels.

    Raises:
        UserError: the backbone does not provide feature maps, or only maps of one size.
    """

    def __init__(self, encoder: nn.Module, channels: int, size: int) -> None:
        super().__init__()
        if not hasattr(encoder, "forward_intermediates"):
            raise UserError("the backbone does not give its feature maps: leave --organ-loss at 0")
        encoder.eval()
        with torch.inference_mode():
            images = torch.zeros(1, channels, size, size)
            maps = encoder.forward_intermediates(images, intermediates_only=True)
        sides = [feature.shape[-1] for feature in maps]
        # of several maps with the same size, the last is the deepest
        self.chosen = [
            place for place, side in enumerate(sides) if side not in sides[place + 1 :] and side < size
        ]
        self.chosen = self.chosen[-len(_WIDTHS) :]
        widths = [maps[place].shape[1] for place in self.chosen]
        if len(self.chosen) < 2:
            raise UserError(
                f"the backbone's feature maps have sides of {sides} px, of which a U-Net needs two: leave "
                "--organ-loss at 0, or choose another --backbone"
            )
        steps = len(self.chosen)
        self.decoder = UnetDecoder(
            encoder_channels=(channels, *widths), decoder_channels=_WIDTHS[-steps:], n_blocks=steps
        )
        self.head = SegmentationHead(_WIDTHS[-1], CLASSES, kernel_size=3)

    def encode(self, encoder: nn.Module, pixels: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        """Return features of all images (N, D), and the feature maps of the chosen ones, large to small."""
        final, maps = encoder.forward_intermediates(pixels, norm=True)
        features = encoder.forward_head(final, pre_logits=True)
        return features, *(maps[place][chosen] for place in self.chosen)

    def forward(self, pixels: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Return organ logits (K, CLASSES, H, W) of K images (K, C, H, W) with their feature maps."""
        return self.head(self.decoder([pixels, *maps]))
