"""A segmentation_models_pytorch decoder on a classifier's encoder: organs as an auxiliary task."""

from collections.abc import Callable, Sequence

import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from src.core.errors import UserError
from src.core.runtime import to_device
from src.nn.micro_batch import run_part, split_evenly

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

    def segment(
        self,
        encoder: nn.Module,
        normalise: Callable[[Tensor], Tensor],
        images: Tensor,
        chosen: Tensor,
        size: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Return features of all images (N, D), and organ logits of the chosen ones as `forward` does.

        Args:
            normalise: converts images to the encoder's input.
            images: (N, C, H, W).
            chosen: increasing indices of images, on the CPU.
            size: images encoded at a time, see `encode_in_parts`; 0 for all.
        """

        def encode(part: Tensor, of_part: Tensor) -> tuple[Tensor, ...]:
            return self.encode(encoder, normalise(part), of_part)

        outputs, first, parts = [], 0, split_evenly(images, size)
        for part in parts:
            of_part = chosen[(chosen >= first) & (chosen < first + len(part))] - first
            given = part, to_device(of_part, images.device)
            outputs.append(run_part(encode, encoder, *given) if len(parts) > 1 else encode(*given))
            first += len(part)
        features, *maps = (torch.cat(tensors) for tensors in zip(*outputs, strict=True))
        return features, self(normalise(images[to_device(chosen, images.device)]), maps)
