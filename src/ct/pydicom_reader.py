"""Read DICOM with pydicom: slower than dicomsdl, and the reference for what dicomsdl cannot read."""

import warnings
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

from src.ct.codestream import PIXEL_DATA_TAG, check_image_size, with_tile_to_end
from src.ct.dicom_header import (
    HEADER_BYTES,
    KEYWORDS,
    MALFORMED,
    PREAMBLE_BYTES,
    DicomError,
    Header,
    looks_like_dicom,
    parse_header,
    read_bytes,
)
from src.ct.storage import StoredFile

_SYNTAX_OF = {
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}
"""Transfer syntax by (implicit VR, little endian) as detected by pydicom."""
_JPEG = (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes)


def read_header(file: StoredFile, head: bytes) -> Header:
    """Read the header of a slice; `head` holds the first `HEADER_BYTES` of the file, or all of it."""
    content = BytesIO(head if len(head) < HEADER_BYTES else read_bytes(file))
    dataset = open_with_pydicom(content, pixels=False)
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    at = content.tell()
    known = content.getbuffer()[at : at + 4] == PIXEL_DATA_TAG
    return parse_header(header_values(dataset), file, syntax, at if known else None)


def read_stored(header: Header) -> np.ndarray:
    """Read the pixels as stored, (rows, cols).

    Raises:
        DicomError: no plugin decodes them, or their size differs from the header's.
    """
    dataset = open_with_pydicom(BytesIO(read_bytes(header.file)), pixels=True)
    syntax = dataset.file_meta.TransferSyntaxUID
    # GDCM, pydicom's first choice, aborts on damaged JPEG-LS.
    plugin = "pyjpegls" if syntax in JPEGLSTransferSyntaxes else ""
    try:
        with warnings.catch_warnings(action="ignore"):
            if syntax in _JPEG:
                frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
                check_image_size(frame, syntax, header)
                if syntax in JPEG2000TransferSyntaxes and (whole := with_tile_to_end(frame)) != frame:
                    dataset.PixelData = encapsulate([whole])
            stored = pixel_array(dataset, decoding_plugin=plugin)
    except (DicomError, MemoryError):
        raise
    # Each decoder plugin raises its own kinds of errors.
    except Exception as error:
        raise DicomError("pixels cannot be decoded") from error
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def open_with_pydicom(content: Any, pixels: bool) -> pydicom.Dataset:
    """Parse a file-like object. Raises `DicomError`."""
    try:
        start = content.read(PREAMBLE_BYTES)
        content.seek(0)
        with warnings.catch_warnings(action="ignore"):  # problems of a file are reported by the kit
            dataset = pydicom.dcmread(content, stop_before_pixels=not pixels, force=looks_like_dicom(start))
        if "TransferSyntaxUID" not in dataset.file_meta:  # a file from before 1993 has no meta information
            dataset.file_meta.TransferSyntaxUID = _SYNTAX_OF[dataset.original_encoding]
        return dataset
    except MemoryError:
        raise
    # Damaged files raise many kinds of errors in pydicom, such as zlib.error and KeyError.
    except Exception as error:
        raise DicomError("not a readable DICOM file") from error


def header_values(dataset: pydicom.Dataset) -> dict[str, Any]:
    """Return values of `KEYWORDS` for `parse_header`: None where missing, `MALFORMED` where damaged."""
    values = {}
    with warnings.catch_warnings(action="ignore"):
        for keyword in KEYWORDS:
            try:
                values[keyword] = dataset.get(keyword)
            except Exception:  # values are parsed on access, and damaged ones raise many kinds of errors
                values[keyword] = MALFORMED
    return values
