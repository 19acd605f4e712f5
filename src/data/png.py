"""Slices as PNG: small files, fast encoding, and channels that are read back unchanged."""

from pathlib import Path

import cv2
import numpy as np

from src.core.errors import UserError

# The levels of several windows are functions of one HU, so whole pixels repeat; deflate finds the repetitions
# if no filter changes them. Relative to run lengths of differences (the setting below), at 256 px: 0.74 times
# the bytes, 1.07 times the encoding time, 0.76 times the decoding time.
PNG_COLOUR = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
)
"""OpenCV's parameters for PNG with several windows."""

# The levels of one window repeat less. Relative to the setting above, at 256 px: 0.88 times the bytes, 0.69
# times the encoding time, 1.6 times the decoding time.
PNG_GREY = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB),
)
"""OpenCV's parameters for PNG with one window, and for masks."""


def encode_png(image: np.ndarray) -> np.ndarray:
    """Encode uint8 (H, W), or (H, W, C) with C = 1 to 3, as PNG; returns the file content, uint8 (bytes,).

    One channel is stored as grey, more channels as RGB, with 0 in unused channels.
    """
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels == 2:
        image = np.dstack([image, np.zeros_like(image[..., 0])])
    if channels > 1:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)  # OpenCV stores red last
    encoded, content = cv2.imencode(".png", image, PNG_GREY if channels == 1 else PNG_COLOUR)
    if not encoded:
        raise ValueError(f"cannot encode an image of shape {image.shape} as PNG")
    return content


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an image in the encoding of `encode_png`."""
    path.write_bytes(encode_png(image))


def read_png(path: Path) -> np.ndarray:
    """Read a PNG that `write_png` wrote: uint8 (H, W) if grey, else (H, W, 3) in RGB order.

    Raises:
        UserError: no such file, or not an image.
    """
    image = decode_png(path)
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_png(path: Path) -> np.ndarray:
    """Decode to (H, W) if grey, else (H, W, 3) in OpenCV's order, BGR."""
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError:
        raise UserError(f"no slice {path}; prepare the data set again") from None
    image = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if content.size else None
    if image is None:
        raise UserError(f"{path} is damaged; delete its folder and prepare the data set again")
    return image
