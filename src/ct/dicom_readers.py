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
from pydicom.encaps import generate_frames
from pydicom.pixels import pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from src.ct.codestream import (
    RLE_HEADER_BYTES,
    CodedImage,
    is_whole_jpeg,
    jpeg_2000_image,
    jpeg_image,
    rle_segments_fit,
)
from src.ct.dicom_header import (
    KEYWORDS,
    MALFORMED,
    PREAMBLE_BYTES,
    DicomError,
    Header,
    looks_like_dicom,
    parse_header,
)
from src.ct.storage import StoredFile, UnreadableFile

HEADER_BYTES = 1 << 14
"""What a scan reads of a file first; a slice's header is hardly ever longer."""

PIXEL_DATA_TAG = b"\xe0\x7f\x10\x00"  # (7FE0,0010), little endian
_BEFORE_PIXELS = 0x7FDFFFFF
_ITEM_TAG = b"\xfe\xff\x00\xe0"
_DELIMITER_TAG = b"\xfe\xff\xdd\xe0"
_UNDEFINED_LENGTH = 0xFFFFFFFF
_VALUES = ["TransferSyntaxUID", *KEYWORDS]
_SYNTAX_OF = {
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}
"""By (implicit VR, little endian), as pydicom found them."""
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
_SIZES = {
    **dict.fromkeys((*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes), jpeg_image),
    **dict.fromkeys(JPEG2000TransferSyntaxes, jpeg_2000_image),
}


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
        except MemoryError:  # the machine's, not the file's
            raise
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
        syntax = dataset.file_meta.TransferSyntaxUID
        # GDCM, which pydicom would ask first, aborts on damaged JPEG-LS.
        plugin = "pyjpegls" if syntax in JPEGLSTransferSyntaxes else ""
        try:
            with warnings.catch_warnings(action="ignore"):
                if syntax in _SIZES:
                    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
                    _check_image(_SIZES[syntax](frame), header)
                stored = pixel_array(dataset, decoding_plugin=plugin)
        except (DicomError, MemoryError):
            raise
        # Each decoder plugin raises errors of its own; whichever it is, this file has no pixels for us.
        except Exception as error:
            raise DicomError("pixels cannot be decoded") from error
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)


FAST_READERS: tuple[Reader, ...] = (DicomsdlReader(), PydicomReader())
SAFE_READERS: tuple[Reader, ...] = (PydicomReader(),)


def open_with_pydicom(content: Any, pixels: bool) -> pydicom.Dataset:
    """Parse a file-like object. Raises `DicomError`."""
    try:
        start = content.read(PREAMBLE_BYTES)
        content.seek(0)
        with warnings.catch_warnings(action="ignore"):  # what is wrong with a file is ours to report
            dataset = pydicom.dcmread(content, stop_before_pixels=not pixels, force=looks_like_dicom(start))
        if (
            "TransferSyntaxUID" not in dataset.file_meta
        ):  # a file of before 1993, without the meta information
            dataset.file_meta.TransferSyntaxUID = _SYNTAX_OF[dataset.original_encoding]
        return dataset
    except MemoryError:
        raise
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
    except MemoryError:
        raise
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
    if header.transfer_syntax == RLELossless:
        start, length = fragments[0]
        rle_header = content[start : start + RLE_HEADER_BYTES]
        if len(fragments) > 1 or not rle_segments_fit(rle_header, length, header.bits_allocated // 8):
            raise DicomError("RLE segments disagree with the header")
        return
    codestream = b"".join(content[start : start + length] for start, length in fragments)
    image = jpeg_image(codestream)
    _check_image(image, header)
    if (image.bits > 8) != (header.bits_allocated == 16):
        raise DicomError("codestream disagrees with the header")
    if not is_whole_jpeg(codestream):
        raise DicomError("pixel data is cut short")
    if (
        header.signed and image.bits < header.bits_stored
    ):  # dicomsdl takes JPEG-LS of 12 signed bits for unsigned
        raise DicomError("sign of the codestream is left to pydicom")


def _check_image(image: CodedImage | None, header: Header) -> None:
    if image is None:
        raise DicomError("codestream has no frame header")
    if (image.rows, image.cols, image.samples) != (header.rows, header.cols, 1):
        raise DicomError("codestream disagrees with the header")


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
