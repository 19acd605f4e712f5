"""Encoder files of random weights, as train_voco.py leaves them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from src.nn.encoder import EncoderFile, create_encoder, save_encoder

WINDOWS = ("soft", "organ", "wide")


def write_encoder(path: Path, name: str = "test_efficientnet", **about: Any) -> nn.Module:
    """Write an encoder file, whose record holds `about` besides its defaults; the encoder in it."""
    given = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "windows": WINDOWS} | about
    channels = len(given["windows"]) * given.get("neighbours", 1)
    torch.manual_seed(0)
    encoder = create_encoder(name, channels).eval()
    save_encoder(path, encoder, EncoderFile(name, channels, **given))
    return encoder
