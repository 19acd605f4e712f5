"""Checks of compressed pixels before they are passed to a decoder.

Decoders follow the codestream, not the DICOM header around it: a codestream of another size is decoded to
shuffled pixels, or written past the end of the decoder's memory.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.uid import (
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from src.ct.dicom_header import DicomError, Header

PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"  # (7FE0,0010), little endian
ITEM_TAG = b"\xfe\xff\x00\xe0"
DELIMITER_TAG = b"\xfe\xff\xdd\xe0"

_JPEG_END = b"\xff\xd9"
_JPEG_2000_START = b"\xff\x4f\xff\x51"  # SOC and SIZ markers; in a JP2 file boxes precede them
_TILE_PART = b"\xff\x90\x00\x0a"  # SOT marker and its length: cannot occur in coded data
_RLE_HEADER_BYTES = 64


@dataclass(frozen=True)
class CodedImage:
    """Image properties that a codestream states."""

    rows: int
    cols: int
    samples: int
    bits: int


def check_codestream(content: bytes, value_at: int, header: Header) -> None:
    """Refuse compressed pixels that are truncated or that do not match the header.

    dicomsdl (0.109.4) writes as many bytes as the codestream states: 8 bits for a 16-bit image leave half of
    the image unset, and 16 bits for an 8-bit image corrupt the memory.

    Args:
        content: content of the file.
        value_at: offset at which the value of the pixel data begins.

    Raises:
        DicomError: dicomsdl must not decode it.
    """
    (_, *fragments), whole = find_fragments(content, value_at)
    if not (fragments and whole):
        raise DicomError("pixel data is cut short")
    if header.transfer_syntax == RLELossless:
        start, length = fragments[0]
        rle_header = content[start : start + _RLE_HEADER_BYTES]
        if len(fragments) > 1 or not _rle_segments_fit(rle_header, length, header.bits_allocated // 8):
            raise DicomError("RLE segments disagree with the header")
        return
    codestream = b"".join(content[start : start + length] for start, length in fragments)
    image = _jpeg_image(codestream)
    _check_image(image, header)
    if (image.bits > 8) != (header.bits_allocated == 16):
        raise DicomError("codestream disagrees with the header")
    if not codestream.rstrip(b"\0").endswith(_JPEG_END):  # decoders fill missing data with grey
        raise DicomError("pixel data is cut short")
    if header.signed and image.bits < header.bits_stored:  # dicomsdl reads signed JPEG-LS as unsigned here
        raise DicomError("sign of the codestream is left to pydicom")


def check_image_size(codestream: bytes, transfer_syntax: str, header: Header) -> None:
    """Refuse a JPEG, JPEG-LS or JPEG 2000 codestream whose size differs from the header's.

    Raises:
        DicomError: the sizes differ, or the codestream states none.
    """
    if transfer_syntax in JPEG2000TransferSyntaxes:
        _check_image(_jpeg_2000_image(codestream), header)
    elif transfer_syntax in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes):
        _check_image(_jpeg_image(codestream), header)


def with_tile_to_end(codestream: bytes) -> bytes:
    """Correct the length (Psot) of the last tile-part of JPEG 2000 if it does not lead to the end marker.

    0 means that the tile-part ends where the codestream does (ISO 15444-1 A.4.2). A codestream without an
    end marker is returned as it is: its data may be cut short.
    """
    at, length = codestream.rfind(_TILE_PART), len(codestream.rstrip(b"\0"))
    if at < 0 or not codestream.endswith(_JPEG_END, at, length):
        return codestream
    stated = int.from_bytes(codestream[at + 6 : at + 10], "big")
    if stated in (0, length - len(_JPEG_END) - at):
        return codestream
    return codestream[: at + 6] + bytes(4) + codestream[at + 10 :]


def find_fragments(content: Any, value_at: int) -> tuple[list[tuple[int, int]], bool]:
    """Locate the items of encapsulated pixels (PS3.5 A.4).

    Args:
        content: content of the file, bytes or a memory map.
        value_at: offset at which the value of the pixel data begins.

    Returns:
        Start and length of each item, the offset table first; and whether the last item is complete.
    """
    fragments = []
    at = value_at
    while content[at : at + 4] == ITEM_TAG:
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        fragments.append((at + 8, length))
        at += 8 + length
    return fragments or [(value_at, 0)], content[at : at + 4] == DELIMITER_TAG


def _check_image(image: CodedImage | None, header: Header) -> None:
    if image is None:
        raise DicomError("codestream has no frame header")
    if (image.rows, image.cols, image.samples) != (header.rows, header.cols, 1):
        raise DicomError("codestream disagrees with the header")


def _jpeg_image(codestream: bytes) -> CodedImage | None:
    """Parse the frame header (SOF) of JPEG or JPEG-LS; None where there is none."""
    at = 2
    while at + 10 <= len(codestream) and codestream[at] == 0xFF:
        marker = codestream[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, cols = (int.from_bytes(codestream[k : k + 2], "big") for k in (at + 5, at + 7))
            return CodedImage(rows, cols, samples=codestream[at + 9], bits=codestream[at + 4])
        at += 1 if marker == 0xFF else 2 + int.from_bytes(codestream[at + 2 : at + 4], "big")
    return None


def _jpeg_2000_image(codestream: bytes) -> CodedImage | None:
    """Parse the size segment (SIZ) of JPEG 2000; None where there is none."""
    at = codestream.find(_JPEG_2000_START)
    if at < 0 or at + 43 > len(codestream):
        return None
    right, bottom, left, top = np.frombuffer(codestream, ">u4", 4, at + 8).tolist()
    samples = int.from_bytes(codestream[at + 40 : at + 42], "big")
    return CodedImage(bottom - top, right - left, samples, bits=(codestream[at + 42] & 0x7F) + 1)


def _rle_segments_fit(start: bytes, length: int, bytes_allocated: int) -> bool:
    """Return whether an RLE header (PS3.5 G.5) states one segment per byte, in order, within `length`.

    `start` holds the frame's first 64 bytes.
    """
    if len(start) < _RLE_HEADER_BYTES or length < _RLE_HEADER_BYTES:
        return False
    n_segments, *offsets = np.frombuffer(start, "<u4", 16).tolist()
    bounds = [*offsets[:bytes_allocated], length]
    return n_segments == bytes_allocated and bounds[0] == _RLE_HEADER_BYTES and sorted(set(bounds)) == bounds
