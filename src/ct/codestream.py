"""What compressed pixels say of themselves, before a decoder is trusted with them.

Decoders believe a codestream rather than the DICOM header around it: one of another size comes back as an
image of shuffled pixels, or is written past the end of its memory.
"""

from dataclasses import dataclass

import numpy as np

_JPEG_END = b"\xff\xd9"
_JPEG_2000_START = b"\xff\x4f\xff\x51"  # SOC and SIZ; a JP2 file has boxes before them
RLE_HEADER_BYTES = 64


@dataclass(frozen=True)
class CodedImage:
    """The image that a codestream states."""

    rows: int
    cols: int
    samples: int
    bits: int


def jpeg_image(codestream: bytes) -> CodedImage | None:
    """From the frame header (SOF) of JPEG or JPEG-LS; None where there is none."""
    at = 2
    while at + 10 <= len(codestream) and codestream[at] == 0xFF:
        marker = codestream[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, cols = (int.from_bytes(codestream[k : k + 2], "big") for k in (at + 5, at + 7))
            return CodedImage(rows, cols, samples=codestream[at + 9], bits=codestream[at + 4])
        at += 1 if marker == 0xFF else 2 + int.from_bytes(codestream[at + 2 : at + 4], "big")
    return None


def jpeg_2000_image(codestream: bytes) -> CodedImage | None:
    """From the size segment (SIZ) of JPEG 2000; None where there is none."""
    at = codestream.find(_JPEG_2000_START)
    if at < 0 or at + 43 > len(codestream):
        return None
    right, bottom, left, top = np.frombuffer(codestream, ">u4", 4, at + 8).tolist()
    samples = int.from_bytes(codestream[at + 40 : at + 42], "big")
    return CodedImage(bottom - top, right - left, samples, bits=(codestream[at + 42] & 0x7F) + 1)


def is_whole_jpeg(codestream: bytes) -> bool:
    """Whether JPEG or JPEG-LS ends as it must. A decoder fills what is missing with grey, without a word."""
    return codestream.rstrip(b"\0").endswith(_JPEG_END)


def rle_segments_fit(start: bytes, length: int, bytes_allocated: int) -> bool:
    """Whether the header of an RLE frame (PS3.5 G.5) states a segment a byte, in order, within its `length`.

    `start` holds the frame's first `RLE_HEADER_BYTES`.
    """
    if len(start) < RLE_HEADER_BYTES or length < RLE_HEADER_BYTES:
        return False
    n_segments, *offsets = np.frombuffer(start, "<u4", 16).tolist()
    bounds = [*offsets[:bytes_allocated], length]
    return n_segments == bytes_allocated and bounds[0] == RLE_HEADER_BYTES and sorted(set(bounds)) == bounds
