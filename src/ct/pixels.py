"""Conversion of a DICOM slice's stored pixels to Hounsfield units, for either DICOM library."""

import numpy as np

from src.ct.dicom_header import DicomError, Header
from src.ct.dicom_readers import read_stored
from src.ct.windows import AIR_HU

_INT16 = np.iinfo(np.int16)
_EMPTY_ABOVE_HU = -500  # a denser empty slice would look like a body that fills the image


def read_hu(header: Header, pydicom_only: bool = False) -> np.ndarray:
    """Read pixels in Hounsfield units, (rows, cols): int16, or float32 where the rescale gives fractions.

    Padding and all values below -1024 HU become air at -1024 HU.

    Raises:
        DicomError: the file cannot be decoded, its pixels do not match its header, or all of them are zero
            and zero is not air.
    """
    hu = stored_to_hu(read_stored(header, pydicom_only), header)
    corner = hu[0, 0]  # nearly always decides without reading the rest
    if corner == header.intercept > _EMPTY_ABOVE_HU and (hu == corner).all():
        raise DicomError("every pixel is zero")
    return hu


def stored_to_hu(stored: np.ndarray, header: Header) -> np.ndarray:
    """Convert stored bits (rows, cols) to Hounsfield units: Modality LUT of DICOM PS3.3 C.11.1.

    Only the low BitsStored bits count (PS3.5 8.1.1): scanners leave garbage above them. Works in place where
    `stored` is writeable, since allocating memory costs more than the arithmetic.

    Raises:
        DicomError: the shape differs from the header's.
    """
    if stored.shape != (header.rows, header.cols):
        raise DicomError(f"pixels are {stored.shape}, the header says {(header.rows, header.cols)}")
    dtype = np.dtype(f"{'i' if header.signed else 'u'}{max(2, stored.dtype.itemsize)}")
    value = stored.astype(dtype, copy=False)
    is_padding = None if header.padding is None else _is_padding(value, header)
    if header.inverted:
        value = np.invert(value, out=_reusable(value))
    value = _keep_valid_bits(value, header)
    hu = _rescale(value, header)
    if is_padding is not None:
        np.copyto(hu, AIR_HU, where=is_padding)
    return hu


def _rescale(value: np.ndarray, header: Header) -> np.ndarray:
    slope, intercept = header.slope, header.intercept
    if not (slope.is_integer() and intercept.is_integer()):
        hu = value.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        return np.maximum(hu, AIR_HU, out=hu)
    low, high = AIR_HU - int(intercept), _INT16.max - int(intercept)
    limits = np.iinfo(value.dtype)
    if slope != 1 or value.dtype.itemsize > 2 or low > limits.max or high < limits.min:
        hu = value.astype(np.int64) * int(slope) + int(intercept)
        return np.clip(hu, AIR_HU, _INT16.max).astype(np.int16)
    # Clip first so that the sum fits into 16 bits; addition modulo 65,536 is the same for signed and
    # unsigned. The limits are rows because numpy compares with a scalar six times slower.
    if low > limits.min:
        value = np.maximum(value, np.full(header.cols, low, dtype=value.dtype), out=_reusable(value))
    if high < limits.max:
        value = np.minimum(value, np.full(header.cols, high, dtype=value.dtype), out=_reusable(value))
    if not value.flags.writeable:
        value = value.copy()
    hu = value.view(np.int16)
    if intercept:
        hu += np.array(int(intercept) & 0xFFFF, dtype=np.uint16).view(np.int16)
    return hu


def _reusable(value: np.ndarray) -> np.ndarray | None:
    """Output array of the next step: the input where it is writeable, else None for a new array."""
    return value if value.flags.writeable else None


def _keep_valid_bits(value: np.ndarray, header: Header) -> np.ndarray:
    """Clear the bits above and below the valid ones, and sign-extend from the highest valid bit."""
    free = value.dtype.itemsize * 8 - header.bits_stored
    if free and header.signed:
        value = np.left_shift(value, free - header.shift_bits, out=_reusable(value))
        return np.right_shift(value, free, out=value)
    if header.shift_bits:
        value = np.right_shift(value, header.shift_bits, out=_reusable(value))
    if free:
        valid = np.array((1 << header.bits_stored) - 1, dtype=value.dtype)
        return np.bitwise_and(value, valid, out=_reusable(value))
    return value


def _is_padding(value: np.ndarray, header: Header) -> np.ndarray:
    """Return which words are padding. It fits the valid bits or needs all 16: -3024 in a 12-bit file."""
    words = np.array(header.padding).astype(np.int16 if header.signed else np.uint16)
    valid = _keep_valid_bits(words.copy(), header)
    if (valid == words).all() and header.bits_stored < value.dtype.itemsize * 8:
        value = _keep_valid_bits(value.copy(), header)
    low, high = np.sort(words).tolist()
    return value == low if low == high else (value >= low) & (value <= high)
