"""The encoder of an organ segmentation of train_seg.py, as a rival of pre-training without labels.

Its U-Net has no layers behind the last blocks (of tf_efficientnet_lite0: `conv_head` and `bn2`), which pooled
features pass: they keep their first weights. All layers get the batch statistics of tiles, as other rivals
have them: those of the training are of whole slices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from harness import read_preset
from torch import Tensor
from torch.optim.swa_utils import update_bn

from src.core.config import plain_options
from src.nn.encoder import EncoderFile, create_encoder, save_encoder
from src.nn.first_weights import load_first_weights
from src.seg.model import load_segmenter
from src.seg.options import SegOptions
from src.seg.run import train_pair
from src.voco.dataset import open_dataset
from src.voco.options import VocoOptions

_BATCHES, _VOLUMES = 20, 12  # whose tiles give the BatchNorms their statistics


@dataclass(frozen=True)
class OrganOptions(SegOptions):
    """Options of `train_seg.py`, of which the backbone of sub-network A is exported as an encoder."""

    tile: int = 64
    """side in pixels of the tiles of the preset `plus` whose batch statistics the encoder gets"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slices != 1:
            raise ValueError(f"option --slices must be 1, the input of an encoder, got {self.slices}")
        if self.leave_out or self.validation:
            raise ValueError("option --validation must be 0 and --leave-out empty: an encoder has no scores")


def train_organs(options: OrganOptions) -> Path:
    """Train the pair, from the start or from a checkpoint, and export the backbone of A, a moving average.

    Returns:
        The path of `encoder.safetensors`.

    Raises:
        UserError: as `train_pair`.
    """
    segmenter = train_pair(options)
    pair, spec = load_segmenter(segmenter)
    encoder = create_encoder(spec.backbones[0], spec.channels)
    load_first_weights(encoder, options.sources[0], spec.windows)
    encoder.load_state_dict(encoder.state_dict() | pair.a.encoder.state_dict())
    encoder.to(memory_format=torch.channels_last)
    images = (tiles / 255.0 for tiles in read_tiles(options, spec.windows))
    update_bn(((each - pair.a.mean) / pair.a.std for each in images), encoder)
    split = pd.read_csv(segmenter.with_name("split.csv"), dtype=str)  # no patient is left out
    about = EncoderFile(
        name=spec.backbones[0],
        in_channels=spec.channels,
        mean=spec.means[0],
        std=spec.stds[0],
        windows=spec.windows,
        trained_by={"script": "train_seg.py", "options": plain_options(options)},
        patients=tuple(split["patient_id"].drop_duplicates()),
    )
    path = segmenter.with_name("encoder.safetensors")
    save_encoder(path, encoder, about)
    return path


def read_tiles(options: OrganOptions, windows: Sequence[str]) -> Iterator[Tensor]:
    """Read tiles of `plus` from random volumes: uint8 (N, C, tile, tile), channels last in memory."""
    given = ["--data", *options.data, "--windows", *windows, "--tile", str(options.tile)]
    dataset = open_dataset(read_preset(VocoOptions, "voco/plus", *given))
    entries = np.random.default_rng(options.seed).permutation(len(dataset))[: _BATCHES * _VOLUMES]
    for batch in np.array_split(entries, max(1, len(entries) // _VOLUMES)):
        tiles = torch.cat([dataset[0, entry].tiles for entry in batch.tolist()])  # (N, 1, tile, tile, C)
        yield tiles[:, 0].permute(0, 3, 1, 2)
