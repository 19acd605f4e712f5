"""Small networks and crops for the tests of pre-training."""

import torch
from torch import nn

from src.nn.encoder import create_encoder, encoder_width
from src.nn.encoder3d import create_volume_encoder
from src.voco.model import ProjectionHead, VocoNet, VolumeVocoNet


def make_net(backbone="mobilenetv3_small_050", channels=1, dropout=0.2, projection=32, micro_batch=0):
    torch.manual_seed(0)
    is_volume = backbone.endswith("3d")
    encoder = (create_volume_encoder if is_volume else create_encoder)(backbone, channels)
    net = (VolumeVocoNet if is_volume else VocoNet)(
        encoder,
        ProjectionHead(encoder_width(encoder), projection),
        dropout=dropout,
        mean=[0.5] * channels,
        std=[0.25] * channels,
        micro_batch=micro_batch,
    )
    return net.train()


def draw_tiles(crops=5, size=32, channels=1, volumes=2, slices=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (volumes, crops, slices, size, size, channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def embed(net, tiles):
    return net(tiles)[0]


def place_loss(embeddings):
    """A loss similar to that of training: crops of a volume should differ in direction."""
    directions = nn.functional.normalize(embeddings, dim=-1)
    return (directions[:, :1] * directions[:, 1:]).sum(-1).square().mean()
