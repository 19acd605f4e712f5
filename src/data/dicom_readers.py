"""The two libraries that read DICOM, behind one protocol. Both hand over the bits as they lie in the file.

dicomsdl is some ten times faster. On damaged input it reads past ends, and on a few unusual encodings it
gives wrong values without a word; cheap looks at the raw bytes leave those to pydicom, the reference.
"""

import warnings
from collections import deque
from io import BytesIO
from typing import Any, Protocol

import dicomsdl
import numpy as np
import pydicom
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from src.data.dicom_header import KEYWORDS, MALFORMED, DicomError, Header, parse_header
from src.data.storage import StoredFile, UnreadableFile

HEADER_BYTES = 1 << 16
"""What a scan reads of a file first; a slice's header is hardly ever longer."""

PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"  # (7FE0,0010), little endian
_BEFORE_PIXELS = 0x7FDFFFFF
_ITEM_TAG = b"\xfe\xff\x00\xe0"
_DELIMITER_TAG = b"\xfe\xff\xdd\xe0"
_UNDEFINED_LENGTH = 0xFFFFFFFF
_VALUES = ["TransferSyntaxUID", *KEYWORDS]
_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
# Not JPEG 2000: no faster than pydicom (the same decoder), and without its care for signs that disagree.
_READ_WITH_DICOMSDL = (
    *_NATIVE,
    RLELossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)


class Reader(Protocol):
    """A library that reads DICOM. Both functions raise `DicomError`."""

    def read_header(self, file: StoredFile, head: bytes) -> Header:
        """`head` holds the first `HEADER_BYTES` of the file, or all of them."""

    def read_stored(self, header: Header) -> np.ndarray:
        """The image as stored, uint16 or int16 or their 8-bit kin, (rows, cols); not to be written to."""


class DicomsdlReader:
    """Reads with dicomsdl, whose compiled parser must be kept from input that crashes the whole process."""

    def __init__(self) -> None:
        dicomsdl.set_loglevel(dicomsdl.LogLevel.DISABLE)  # it prints what it also raises

    def read_header(self, file: StoredFile, head: bytes) -> Header:
        try:
            return _header_from(head, file)
        except _HeaderIncomplete as incomplete:
            if len(head) < HEADER_BYTES:
                raise DicomError(str(incomplete)) from None
        try:
            return _header_from(read_bytes(file), file)
        except _HeaderIncomplete as incomplete:
            raise DicomError(str(incomplete)) from None

    def read_stored(self, header: Header) -> np.ndarray:
        if header.pixels_at is None or header.transfer_syntax not in _READ_WITH_DICOMSDL:
            raise DicomError("transfer syntax is left to pydicom")
        content = read_bytes(header.file)
        value_at = _check_pixel_element(content, header)
        if header.transfer_syntax in _NATIVE:  # nothing to decode
            dtype = np.dtype(f"<{'i' if header.signed else 'u'}{header.bits_allocated // 8}")
            n_pixels = header.rows * header.cols
            return np.frombuffer(content, dtype, n_pixels, value_at).reshape(header.rows, header.cols)
        _check_codestream(content, value_at, header)
        try:
            dataset = dicomsdl.open_memory(content, copy_data=False)
            info = dataset.getPixelDataInfo()
            stored = np.empty((info["Rows"], info["Cols"]), dtype=info["dtype"])
            dataset.copyFrameData(0, stored)
        # Beside its DicomException, dicomsdl lets errors of its binding through, a RuntimeError among them.
        except Exception as error:
            raise DicomError("pixels cannot be decoded") from error
        return stored


class PydicomReader:
    """Reads with pydicom: slower, knows every transfer syntax that its plugins decode."""

    def read_header(self, file: StoredFile, head: bytes) -> Header:
        content = BytesIO(head if len(head) < HEADER_BYTES else read_bytes(file))
        dataset = open_with_pydicom(content, pixels=False)
        syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
        at = content.tell()
        known = content.getbuffer()[at : at + 4] == PIXEL_DATA_TAG
        return parse_header(pydicom_values(dataset), file, syntax, at if known else None)

    def read_stored(self, header: Header) -> np.ndarray:
        dataset = open_with_pydicom(BytesIO(read_bytes(header.file)), pixels=True)
        try:
            with warnings.catch_warnings(action="ignore"):
                stored = dataset.pixel_array
        # Each decoder plugin raises errors of its own; whichever it is, this file has no pixels for us.
        except Exception as error:
            raise DicomError("pixels cannot be decoded") from error
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)


FAST_READERS: tuple[Reader, ...] = (DicomsdlReader(), PydicomReader())
SAFE_READERS: tuple[Reader, ...] = (PydicomReader(),)


def open_with_pydicom(content: Any, pixels: bool) -> pydicom.Dataset:
    """Parse a file-like object. Raises `DicomError`."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what is wrong with a file is ours to report
            return pydicom.dcmread(content, stop_before_pixels=not pixels)
    # A damaged file fails in pydicom with errors of many kinds, a zlib.error or a KeyError among them.
    except Exception as error:
        raise DicomError("not a readable DICOM file") from error


def pydicom_values(dataset: pydicom.Dataset) -> dict[str, Any]:
    """Values of `KEYWORDS`, `MALFORMED` where they are."""
    values = {}
    with warnings.catch_warnings(action="ignore"):
        for keyword in KEYWORDS:
            try:
                values[keyword] = dataset.get(keyword)
            except Exception:  # parsed only now, and damaged ones raise errors of many kinds
                values[keyword] = MALFORMED
    return values


def read_bytes(file: StoredFile, limit: int | None = None) -> bytes:
    """Content of a file. Raises `DicomError`."""
    try:
        return file.read(limit)
    except UnreadableFile as error:
        raise DicomError(str(error)) from error


class _HeaderIncomplete(Exception):
    """The bytes at hand do not reach the pixels; the message is the reason, if they are all."""


def _header_from(content: bytes, file: StoredFile) -> Header:
    if content[128:132] != b"DICM":  # an empty file aborts the process inside dicomsdl (0.109.4)
        raise DicomError("not a readable DICOM file")
    try:
        dataset = dicomsdl.open_memory(content, copy_data=False, load_until=_BEFORE_PIXELS)
        syntax, *values = dataset.getValues(_VALUES)
        (last,) = deque(dataset, maxlen=1)
    except Exception as error:
        raise _HeaderIncomplete("not a readable DICOM file") from error
    pixels_at = last.offset() + last.length()
    if content[pixels_at : pixels_at + 4] != PIXEL_DATA_TAG:
        raise _HeaderIncomplete("pixel data is not where the header ends")
    return parse_header(dict(zip(KEYWORDS, values, strict=True)), file, syntax or "", pixels_at)


def _check_pixel_element(content: bytes, header: Header) -> int:
    """Where the value of the pixel data begins; refuse one that is cut short or of another kind."""
    syntax = header.transfer_syntax
    length_at = header.pixels_at + (4 if syntax == ImplicitVRLittleEndian else 8)
    length = int.from_bytes(content[length_at : length_at + 4], "little")
    is_there = content[header.pixels_at : header.pixels_at + 4] == PIXEL_DATA_TAG
    if not is_there or header.bits_allocated not in (8, 16):
        raise DicomError("pixel data is left to pydicom")
    if syntax in _NATIVE:
        needed = header.rows * header.cols * header.bits_allocated // 8
        if length < needed or length_at + 4 + length > len(content):
            raise DicomError("pixel data is cut short")
    elif length != _UNDEFINED_LENGTH:
        raise DicomError("pixel data is not encapsulated")
    return length_at + 4


def _check_codestream(content: bytes, value_at: int, header: Header) -> None:
    """Refuse compressed pixels that are cut short or state another image than the header does.

    dicomsdl (0.109.4) writes as many bytes as the codestream says, whatever the room: a codestream of 8 bits
    for a 16-bit image leaves half of it unset, and one of 16 bits for an 8-bit image corrupts the memory.
    """
    (_, *fragments), whole = find_fragments(content, value_at)
    if not (fragments and whole):
        raise DicomError("pixel data is cut short")
    start, length = fragments[0]
    if header.transfer_syntax == RLELossless:
        marks = np.frombuffer(content, "<u4", 16, start).tolist() if length >= 64 else [0]
        n_segments = header.bits_allocated // 8
        starts = [*marks[1 : n_segments + 1], length]
        in_order = starts[0] == 64 and sorted(set(starts)) == starts
        if marks[0] != n_segments or not in_order or len(fragments) > 1:
            raise DicomError("RLE segments disagree with the header")
        return
    bits, rows, cols, samples = _jpeg_frame(content[start : start + min(length, HEADER_BYTES)])
    if (rows, cols, samples) != (header.rows, header.cols, 1) or (bits > 8) != (header.bits_allocated == 16):
        raise DicomError("codestream disagrees with the header")
    if header.signed and bits < header.bits_stored:  # dicomsdl takes JPEG-LS of 12 signed bits for unsigned
        raise DicomError("sign of the codestream is left to pydicom")


def find_fragments(content: Any, value_at: int) -> tuple[list[tuple[int, int]], bool]:
    """Start and length of each item of encapsulated pixels, the offset table first; and whether all is there.

    `content` may be bytes or a memory map.
    """
    fragments = []
    at = value_at
    while content[at : at + 4] == _ITEM_TAG:
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        fragments.append((at + 8, length))
        at += 8 + length
    return fragments or [(value_at, 0)], content[at : at + 4] == _DELIMITER_TAG


def _jpeg_frame(codestream: bytes) -> tuple[int, int, int, int]:
    """Bits, rows, columns and components that the frame header of a JPEG or JPEG-LS codestream states."""
    at = 2
    while at + 10 <= len(codestream) and codestream[at] == 0xFF:
        marker = codestream[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, cols = (int.from_bytes(codestream[k : k + 2], "big") for k in (at + 5, at + 7))
            return codestream[at + 4], rows, cols, codestream[at + 9]
        at += 1 if marker == 0xFF else 2 + int.from_bytes(codestream[at + 2 : at + 4], "big")
    raise DicomError("codestream has no frame header")
