"""One DICOM image: its header, and its pixels in Hounsfield units.

dicomsdl reads first (some ten times faster), pydicom reads what dicomsdl cannot. Both hand over the stored
bits as they lie in the file; what these mean is decided here, once for both.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import dicomsdl
import numpy as np
import pydicom
from pydicom.uid import JPEG2000, UID, DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from src.data.windows import AIR_HU

_BEFORE_PIXELS = 0x7FDFFFFF
_PIXEL_DATA_TAG_LITTLE_ENDIAN = b"\xe0\x7f\x10\x00"
_UNDEFINED_LENGTH = 0xFFFFFFFF
_INT16 = np.iinfo(np.int16)


class DicomError(Exception):
    """A file that cannot be used. The message says why, in a few words."""


@dataclass(frozen=True)
class Header:
    """What the kit needs of a CT image's header. Vectors are (x, y, z) in patient space: left, back, head."""

    path: Path
    instance_number: int
    rows: int
    cols: int
    position_mm: tuple[float, float, float]
    """Centre of the first pixel: ImagePositionPatient (0020,0032)."""
    along_cols: tuple[float, float, float]
    """Unit vector in which the column index grows: first half of ImageOrientationPatient (0020,0037)."""
    along_rows: tuple[float, float, float]
    """Unit vector in which the row index grows: second half."""
    row_mm: float
    col_mm: float
    bits_stored: int
    signed: bool
    inverted: bool
    """MONOCHROME1 (0028,0004)."""
    slope: float
    intercept: float
    padding: int | None
    """PixelPaddingValue (0028,0120): stored value of pixels outside the reconstructed circle."""


class Reader(Protocol):
    """A library that reads DICOM. Both functions raise `DicomError`."""

    def read_header(self, path: Path) -> Header: ...

    def read_stored(self, header: Header) -> np.ndarray: ...


class DicomsdlReader:
    """Reads with dicomsdl, whose compiled parser must be kept from input that crashes the whole process."""

    def __init__(self) -> None:
        dicomsdl.set_loglevel(dicomsdl.LogLevel.DISABLE)  # it prints what it also raises

    def read_header(self, path: Path) -> Header:
        _check_preamble(path)
        try:
            dataset = dicomsdl.open(str(path), load_until=_BEFORE_PIXELS)
        except dicomsdl.DicomException as error:
            raise DicomError("not a readable DICOM file") from error
        return _parse_header(dataset.__getitem__, path)

    def read_stored(self, header: Header) -> np.ndarray:
        """The image as stored, uint16 or int16 or their 8-bit kin, (rows, cols)."""
        content = _read_bytes(header.path)
        _check_pixel_data_is_whole(content, header)
        try:
            dataset = dicomsdl.open_memory(content, copy_data=False)
            info = dataset.getPixelDataInfo()
            stored = np.empty((info["Rows"], info["Cols"]), dtype=info["dtype"])
            dataset.copyFrameData(0, stored)
        except (dicomsdl.DicomException, TypeError, ValueError) as error:
            raise DicomError("pixels cannot be decoded") from error
        return stored


class PydicomReader:
    """Reads with pydicom: slower, never crashes, knows every transfer syntax its plugins decode."""

    def read_header(self, path: Path) -> Header:
        return _parse_header(self._open(path, pixels=False).get, path)

    def read_stored(self, header: Header) -> np.ndarray:
        """The image as stored, (rows, cols)."""
        dataset = self._open(header.path, pixels=True)
        try:
            with warnings.catch_warnings(action="ignore"):
                return dataset.pixel_array
        # Each decoder plugin raises errors of its own; whichever it is, this file has no pixels for us.
        except Exception as error:
            raise DicomError("pixels cannot be decoded") from error

    @staticmethod
    def _open(path: Path, pixels: bool) -> pydicom.Dataset:
        try:
            with warnings.catch_warnings(action="ignore"):  # what is wrong with a file is ours to report
                return pydicom.dcmread(path, stop_before_pixels=not pixels)
        # A damaged file fails in pydicom with errors of many kinds, a zlib.error or a KeyError among them.
        except Exception as error:
            raise DicomError("not a readable DICOM file") from error


FAST_READERS: tuple[Reader, ...] = (DicomsdlReader(), PydicomReader())
SAFE_READERS: tuple[Reader, ...] = (PydicomReader(),)


def read_header(path: Path, readers: tuple[Reader, ...] = FAST_READERS) -> Header:
    """Header of a file, by the first reader that can.

    Raises:
        DicomError: no reader can, or a tag that the kit needs is missing or makes no sense.
    """
    return _first_success(readers, lambda reader: reader.read_header(path))


def read_hu(header: Header, readers: tuple[Reader, ...] = FAST_READERS) -> np.ndarray:
    """Pixels in Hounsfield units, (rows, cols): int16, or float32 where the rescale gives fractions.

    Padding and everything below -1024 HU is air at -1024 HU.

    Raises:
        DicomError: no reader decodes the file, or its pixels do not agree with its header.
    """
    return stored_to_hu(_first_success(readers, lambda reader: reader.read_stored(header)), header)


def stored_to_hu(stored: np.ndarray, header: Header) -> np.ndarray:
    """Stored bits (rows, cols) to Hounsfield units: Modality LUT of DICOM PS3.3 C.11.1 on the valid bits.

    Only the low BitsStored bits count (PS3.5 8.1.1): scanners leave garbage above them.

    Raises:
        DicomError: the shape is not the header's.
    """
    if stored.shape != (header.rows, header.cols):
        raise DicomError(f"pixels are {stored.shape}, the header says {(header.rows, header.cols)}")
    value = stored.astype(np.int32)  # worked on in place: new arrays of this size cost more than the sums
    _keep_valid_bits(value, header)
    is_padding = None
    if header.padding is not None:
        padding = np.array([header.padding], dtype=np.int32)
        _keep_valid_bits(padding, header)
        is_padding = value == padding
    if header.inverted and header.slope > 0:
        # MONOCHROME1 stores bright as low. A negative slope already turns that back; a positive one does not.
        np.subtract(-1 if header.signed else (1 << header.bits_stored) - 1, value, out=value)
    if header.slope.is_integer() and header.intercept.is_integer():
        value *= int(header.slope)
        value += int(header.intercept)
        hu = np.clip(value, AIR_HU, _INT16.max, out=value).astype(np.int16)
    else:
        hu = value.astype(np.float32) * np.float32(header.slope) + np.float32(header.intercept)
        np.maximum(hu, AIR_HU, out=hu)
    if is_padding is not None:
        hu[is_padding] = AIR_HU
    return hu


def _keep_valid_bits(value: np.ndarray, header: Header) -> None:
    """In place, on int32: clear the bits above BitsStored, and extend the sign from the highest valid one."""
    if header.signed:
        value <<= 32 - header.bits_stored
        value >>= 32 - header.bits_stored
    else:
        value &= (1 << header.bits_stored) - 1


def _first_success(readers: tuple[Reader, ...], read: Any) -> Any:
    """The last reader's error is the one reported: it is the one that knows most formats."""
    for reader in readers[:-1]:
        try:
            return read(reader)
        except DicomError:
            continue
    return read(readers[-1])


def _parse_header(get: Any, path: Path) -> Header:
    """Build the header from `get(keyword)`, which gives a value or None."""
    try:
        position = _floats(get("ImagePositionPatient"), 3)
        orientation = _floats(get("ImageOrientationPatient"), 6)
        row_mm, col_mm = _floats(get("PixelSpacing"), 2)
        bits_stored = int(get("BitsStored") or get("BitsAllocated"))
        padding = get("PixelPaddingValue")
        header = Header(
            path=path,
            instance_number=int(get("InstanceNumber") or 0),
            rows=int(get("Rows")),
            cols=int(get("Columns")),
            position_mm=position,
            along_cols=orientation[:3],
            along_rows=orientation[3:],
            row_mm=row_mm,
            col_mm=col_mm,
            bits_stored=bits_stored,
            signed=bool(int(get("PixelRepresentation") or 0)),
            inverted=get("PhotometricInterpretation") == "MONOCHROME1",
            slope=1.0 if get("RescaleSlope") is None else float(get("RescaleSlope")),
            intercept=0.0 if get("RescaleIntercept") is None else float(get("RescaleIntercept")),
            padding=padding if isinstance(padding, int) and abs(padding) < 1 << 16 else None,
        )
        frames, samples = int(get("NumberOfFrames") or 1), int(get("SamplesPerPixel") or 1)
    # pydicom parses a value when it is asked for, and damaged ones raise errors of many kinds.
    except Exception as error:
        raise DicomError("size, position, orientation or spacing is missing or malformed") from error
    if frames != 1:
        raise DicomError(f"holds {frames} frames, not one slice")
    if samples != 1:
        raise DicomError("is a colour image, not CT")
    numbers = (*position, *orientation, row_mm, col_mm, header.slope, header.intercept)
    unit = all(abs(math.hypot(*axis) - 1) < 0.01 for axis in (header.along_cols, header.along_rows))
    sizes = header.rows > 0 and header.cols > 0 and row_mm > 0 and col_mm > 0 and 1 <= bits_stored <= 16
    if not (all(map(math.isfinite, numbers)) and unit and sizes and header.slope != 0):
        raise DicomError("size, position, orientation, spacing or rescale makes no sense")
    return header


def _floats(values: Any, count: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count:
        raise ValueError(f"expected {count} numbers, got {len(numbers)}")
    return numbers


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DicomError("file cannot be read") from error


def _check_preamble(path: Path) -> None:
    """An empty file aborts the process inside dicomsdl (0.109.4), so what is not DICOM never gets there."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as error:
        raise DicomError("file cannot be read") from error
    if start[128:] != b"DICM":
        raise DicomError("not a readable DICOM file")


def _check_pixel_data_is_whole(content: bytes, header: Header) -> None:
    """Refuse what dicomsdl crashes on or reads wrongly, so that pydicom gets it.

    A native file cut short ends the process with a segmentation fault (dicomsdl 0.109.4), so the length is
    checked first. JPEG 2000 is left to pydicom, which also looks at the sign that the codestream states.
    """
    try:
        dataset = dicomsdl.open_memory(content, copy_data=False, load_until=_BEFORE_PIXELS)
        syntax = UID(dataset["TransferSyntaxUID"] or "")
        expected = header.rows * header.cols * (int(dataset["BitsAllocated"]) // 8)
        last = max(dataset, key=lambda element: element.offset())
    except (dicomsdl.DicomException, TypeError, ValueError) as error:
        raise DicomError("not a readable DICOM file") from error
    if (
        syntax in (JPEG2000, JPEG2000Lossless, DeflatedExplicitVRLittleEndian)
        or not syntax.is_transfer_syntax
    ):
        raise DicomError("transfer syntax is left to pydicom")
    start = last.offset() + last.length()
    length_at = start + (4 if syntax.is_implicit_VR else 8)
    length = int.from_bytes(content[length_at : length_at + 4], "little")
    if content[start : start + 4] != _PIXEL_DATA_TAG_LITTLE_ENDIAN:
        raise DicomError("pixel data is not where the header ends")
    if length == _UNDEFINED_LENGTH:
        return  # encapsulated: dicomsdl checks each fragment's length itself
    if length < expected or length_at + 4 + length > len(content):
        raise DicomError("pixel data is cut short")
