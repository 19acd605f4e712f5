"""Read DICOM files: with dicomsdl, and with pydicom where dicomsdl cannot or must not.

dicomsdl is about ten times faster. On damaged input it reads out of bounds, and it decodes a few unusual
encodings to wrong values without an error; cheap checks of the raw bytes pass those files to pydicom, the
reference. Both return the bits as stored.
"""

from collections import deque

import dicomsdl
import numpy as np
from pydicom.uid import (
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedCTImageStorage,
    RLELossless,
)

from src.ct import pydicom_reader
from src.ct.codestream import PIXEL_DATA_TAG, check_codestream
from src.ct.dicom_header import (
    DECIMAL_KEYWORDS,
    HEADER_BYTES,
    KEYWORDS,
    DicomError,
    Header,
    parse_header,
    read_bytes,
)
from src.ct.multiframe import read_frames
from src.ct.storage import StoredFile

_BEFORE_PIXELS = 0x7FDFFFFF
_UNDEFINED_LENGTH = 0xFFFFFFFF
_VALUES = ["TransferSyntaxUID", *KEYWORDS]
_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
# Without JPEG 2000: dicomsdl uses the decoder of pydicom, is no faster, and skips pydicom's sign checks.
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
_ENHANCED = tuple(
    uid.encode() + b"\0" * (len(uid) % 2)
    for uid in (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
)
_FILE_META_BYTES = 1024  # the SOP class is among the first elements of a file

dicomsdl.set_loglevel(dicomsdl.LogLevel.DISABLE)  # it logs every error that it raises


def read_headers(file: StoredFile, pydicom_only: bool = False) -> list[Header]:
    """Read the header of each slice in a file: one, or one per frame of an enhanced CT.

    Raises:
        DicomError: not a readable CT slice.
    """
    head = read_bytes(file, HEADER_BYTES)
    if any(uid in head[:_FILE_META_BYTES] for uid in _ENHANCED):
        return read_frames(file)
    if not pydicom_only:
        try:
            return [dicomsdl_header(file, head)]
        except DicomError:
            pass  # report pydicom's error instead: it supports more formats
    return [pydicom_reader.read_header(file, head)]


def read_stored(header: Header, pydicom_only: bool = False) -> np.ndarray:
    """Read the pixels of a slice as stored: (rows, cols) uint16, int16 or 8 bits; read-only.

    Raises:
        DicomError: the pixels cannot be decoded.
    """
    if not pydicom_only:
        try:
            return dicomsdl_stored(header)
        except DicomError:
            pass
    return pydicom_reader.read_stored(header)


class _HeaderIncomplete(DicomError):
    """The given bytes end before the pixels."""


def dicomsdl_header(file: StoredFile, head: bytes) -> Header:
    """Read the header of a slice; `head` holds the first `HEADER_BYTES` of the file, or all of it.

    Raises:
        DicomError: dicomsdl cannot read it, or it is not a CT slice.
    """
    try:
        return _parse_with_dicomsdl(head, file)
    except _HeaderIncomplete:
        if len(head) < HEADER_BYTES:
            raise
    return _parse_with_dicomsdl(read_bytes(file), file)


def _parse_with_dicomsdl(content: bytes, file: StoredFile) -> Header:
    if content[128:132] != b"DICM":  # an empty file aborts the process inside dicomsdl (0.109.4)
        raise DicomError("not a readable DICOM file")
    try:
        dataset = dicomsdl.open_memory(content, copy_data=False, load_until=_BEFORE_PIXELS)
        syntax, *found = dataset.getValues(_VALUES)
        values = dict(zip(KEYWORDS, found, strict=True)) | _decimals_as_text(dataset)
        (last,) = deque(dataset, maxlen=1)
    except MemoryError:
        raise
    except Exception as error:
        raise _HeaderIncomplete("not a readable DICOM file") from error
    pixels_at = last.offset() + last.length()
    if content[pixels_at : pixels_at + 4] != PIXEL_DATA_TAG:
        raise _HeaderIncomplete("pixel data is not where the header ends")
    return parse_header(values, file, syntax or "", pixels_at)


def _decimals_as_text(dataset: dicomsdl.DataSet) -> dict[str, str]:
    """Return the decimal numbers as written: dicomsdl reads 1,5 as 1 and 0x5 as 0 without an error."""
    elements = ((keyword, dataset.getDataElement(keyword)) for keyword in DECIMAL_KEYWORDS)
    return {
        keyword: element.toBytes().decode("latin-1")
        for keyword, element in elements
        if element.vr() == dicomsdl.VR.DS
    }


def dicomsdl_stored(header: Header) -> np.ndarray:
    """Read the pixels as stored, (rows, cols).

    Raises:
        DicomError: dicomsdl cannot decode them, or might crash on them.
    """
    if header.pixels_at is None or header.transfer_syntax not in _READ_WITH_DICOMSDL:
        raise DicomError("transfer syntax is left to pydicom")
    content = read_bytes(header.file)
    value_at = _check_pixel_element(content, header)
    if header.transfer_syntax in _NATIVE:  # nothing to decode
        dtype = np.dtype(f"<{'i' if header.signed else 'u'}{header.bits_allocated // 8}")
        n_pixels = header.rows * header.cols
        return np.frombuffer(content, dtype, n_pixels, value_at).reshape(header.rows, header.cols)
    check_codestream(content, value_at, header)
    try:
        dataset = dicomsdl.open_memory(content, copy_data=False)
        info = dataset.getPixelDataInfo()
        stored = np.empty((info["Rows"], info["Cols"]), dtype=info["dtype"])
        dataset.copyFrameData(0, stored)
    except MemoryError:  # the machine's fault, not the file's
        raise
    # Besides its DicomException, dicomsdl raises errors of its binding, such as RuntimeError.
    except Exception as error:
        raise DicomError("pixels cannot be decoded") from error
    return stored


def _check_pixel_element(content: bytes, header: Header) -> int:
    """Return the offset of the pixel data's value; refuse truncated data and data of another kind."""
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
