"""The encoder of an organ segmentation of train_seg.py, as a rival of pre-training without labels.

Its U-Net has no layers behind the last blocks (of tf_efficientnet_lite0: `conv_head` and `bn2`), which pooled
features pass: they keep their first weights.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from src.core.config import plain_options
from src.nn.encoder import EncoderFile, create_encoder, save_encoder
from src.nn.first_weights import load_first_weights
from src.seg.model import load_segmenter
from src.seg.options import SegOptions
from src.seg.run import train_pair


@dataclass(frozen=True)
class OrganOptions(SegOptions):
    """Options of `train_seg.py`, of which the backbone of sub-network A is exported as an encoder."""

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
