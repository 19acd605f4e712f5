"""Encoders of sub-volumes: MONAI's SwinUNETR encoder, as VoCo pre-trains it, and a light 3D CNN.

MONAI takes seconds to import, and is therefore imported when an encoder is built.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from src.core.errors import UserError


class SwinEncoder(nn.Module):
    """The encoder of SwinUNETR with MONAI's own names, its five feature maps pooled into one vector.

    VoCo (arXiv 2402.17300): patches of 2, windows of 7, depths 2, 2, 2, 2, heads 3, 6, 12, 24, and a residual
    convolution before each stage. The decoder is not built. Attention blocks, which use most of the memory,
    are recomputed in the backward pass, as in the published runs.

    Args:
        in_channels: channels of the volume.
        features: channels of the first stage (48, 96 and 192 are published), a multiple of 12.
    """

    side_multiple = 32
    """required divisor of each side: patches of 2, then four stages that halve"""

    def __init__(self, in_channels: int, features: int) -> None:
        super().__init__()
        from monai.networks.blocks import UnetrBasicBlock
        from monai.networks.nets.swin_unetr import SwinTransformer

        self.num_features = (1 + 1 + 2 + 4 + 16) * features
        self.swinViT = SwinTransformer(
            in_chans=in_channels,
            embed_dim=features,
            window_size=(7, 7, 7),
            patch_size=(2, 2, 2),
            depths=(2, 2, 2, 2),
            num_heads=(3, 6, 12, 24),
            use_checkpoint=True,
            spatial_dims=3,
            use_v2=True,
        )

        def block(channels: int, width: int) -> nn.Module:
            return UnetrBasicBlock(3, channels, width, 3, stride=1, norm_name="instance", res_block=True)

        self.encoder1 = block(in_channels, features)
        self.encoder2 = block(features, features)
        self.encoder3 = block(2 * features, 2 * features)
        self.encoder4 = block(4 * features, 4 * features)
        self.encoder10 = block(16 * features, 16 * features)

    def forward(self, volumes: Tensor) -> Tensor:
        """Encode volumes (M, C, T, H, W) -> (M, 24 x features).

        Raises:
            UserError: a side is not a multiple of 32, or all are 32.
        """
        check_sides("a SwinUNETR encoder", self, volumes.shape[2:])
        stages = self.swinViT(volumes)
        maps = (
            self.encoder1(volumes),  # (M, features, T, H, W)
            self.encoder2(stages[0]),  # half of each side
            self.encoder3(stages[1]),
            self.encoder4(stages[2]),
            self.encoder10(stages[4]),  # (M, 16 x features, T / 32, H / 32, W / 32)
        )
        return torch.cat([feature_map.mean(dim=(2, 3, 4)) for feature_map in maps], dim=1)


def build_resnet10(in_channels: int) -> nn.Module:
    """Build a residual CNN of ten narrow layers for CPUs: (M, C, T, H, W) -> (M, 128), any sides."""
    from monai.networks.nets.resnet import ResNet

    planes = [16, 32, 64, 128]
    network = ResNet(
        "basic", [1, 1, 1, 1], planes, 3, in_channels, conv1_t_size=3, conv1_t_stride=2, feed_forward=False
    )
    network.num_features = planes[-1]
    return network


VOLUME_BACKBONES: dict[str, Callable[[int], nn.Module]] = {
    "swin_unetr_b": partial(SwinEncoder, features=48),
    "swin_unetr_l": partial(SwinEncoder, features=96),
    "swin_unetr_h": partial(SwinEncoder, features=192),
    "resnet10_3d": build_resnet10,
}
"""Encoders of volumes by their --backbone name."""


def create_volume_encoder(name: str, in_channels: int) -> nn.Module:
    """Create an encoder of volumes with random weights: (M, C, T, H, W) -> (M, D), D from `encoder_width`.

    Raises:
        UserError: no such encoder.
    """
    if name not in VOLUME_BACKBONES:
        raise UserError(f"no 3D backbone {name!r}: there are {', '.join(VOLUME_BACKBONES)}")
    return VOLUME_BACKBONES[name](in_channels)


def check_sides(name: str, encoder: nn.Module, sides: Sequence[int]) -> None:
    """Check that an encoder accepts volumes with these sides (slices, rows, columns).

    Raises:
        UserError: a side is not a multiple of the encoder's, or a single voxel would be left, which cannot be
            normalised.
    """
    step = getattr(encoder, "side_multiple", 1)
    if any(side % step for side in sides) or (step > 1 and max(sides) == step):
        shape = " x ".join(str(side) for side in sides)
        raise UserError(
            f"{name} takes volumes whose sides are multiples of {step}, one of them {2 * step} or more, not "
            f"{shape}: set --slices and --tile"
        )
