"""Header of a CT slice: the DICOM tags that the kit needs, checked, from either DICOM library."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from src.ct.geometry import SliceGrid
from src.ct.series import SliceError
from src.ct.storage import StoredFile, UnreadableFile

KEYWORDS = (
    "SOPClassUID",
    "ImageType",
    "AcquisitionTime",
    "ContentTime",
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "ModalityLUTSequence",
)
"""The tags that `parse_header` uses, besides TransferSyntaxUID."""

DECIMAL_KEYWORDS = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
)
"""Those of `KEYWORDS` with the value representation DS: decimal numbers as text, PS3.5 6.2."""

MALFORMED = object()
"""Marks a value that cannot be parsed."""

HEADER_BYTES = 1 << 14
"""Number of bytes read first of each file; a slice's header is rarely longer."""

PREAMBLE_BYTES = 132

_OTHER_UNITS = ("OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")  # RescaleType (0028,1054): defined terms but HU
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")  # file meta, identification, the latter in big endian
_LAST_FIRST_ELEMENT = 0x0018  # SOP Instance UID: images begin with this element or an earlier one
_PIXEL_MM = (1e-3, 100.0)
_MAX_PIXELS = 16384  # per side; a decoder would allocate whatever size a damaged header states
_SHOWN_CHARACTERS = 40  # of a value that cannot be read
_MAX_PLAUSIBLE = 1e6  # limit for positions (mm) and rescale values (HU)


class DicomError(SliceError):
    """A file that cannot be used. The message is a short reason."""


@dataclass(frozen=True)
class Header:
    """Header of a CT slice. Vectors are (x, y, z) in patient space: left, back, head."""

    file: StoredFile
    instance_number: int
    rows: int
    cols: int
    position_mm: tuple[float, float, float]
    """Centre of the first pixel: ImagePositionPatient (0020,0032)."""
    along_cols: tuple[float, float, float]
    """Unit vector of increasing column index: first half of ImageOrientationPatient (0020,0037)."""
    along_rows: tuple[float, float, float]
    """Unit vector of increasing row index: second half of ImageOrientationPatient."""
    row_mm: float
    col_mm: float
    bits_allocated: int
    bits_stored: int
    shift_bits: int
    """Bits below the valid ones: HighBit (0028,0102) + 1 - BitsStored, nearly always 0."""
    signed: bool
    inverted: bool
    """Whether low stored values are bright: MONOCHROME1 (0028,0004), unless the series shows otherwise."""
    slope: float
    intercept: float
    rescale_type: str
    """RescaleType (0028,1054) as stored: HU, US for unspecified, which scanners write for HU, or any text."""
    padding: tuple[int, int] | None
    """Lowest and highest stored value outside the reconstructed circle: PixelPaddingValue (0028,0120) and
    PixelPaddingRangeLimit (0028,0121). 16-bit patterns: their sign is not reliable."""
    transfer_syntax: str
    modality: str
    patient_id: str
    study_uid: str
    series_uid: str
    frame_uid: str
    """FrameOfReferenceUID (0020,0052): positions are comparable within one."""
    acquisition_number: int | None
    acquisition_time: str
    content_time: str
    image_type: str
    """Values joined by backslashes, as stored in the file."""
    pixels_at: int | None = field(default=None, compare=False)
    """Offset in the file at which the pixel data element begins, if known."""
    mended: tuple[str, ...] = field(default=(), compare=False)
    """What was read otherwise than it is written, in a few words each."""

    @property
    def windowed(self) -> bool:
        """Whether the pixels are grey levels of a CT window: 8 bits, and no rescale to HU."""
        return self.bits_stored <= 8 and self.slope == 1 and self.intercept == 0

    @property
    def grid(self) -> SliceGrid:
        """Pixel grid of the slice."""
        sides = (self.rows, self.cols, self.row_mm, self.col_mm)
        return SliceGrid(*sides, self.along_rows, self.along_cols)


def positions_along_normal(headers: Sequence[Header]) -> np.ndarray:
    """Positions of the slices in mm along the normal of the first, increasing to the head: (slices,)."""
    return np.array([header.position_mm for header in headers]) @ headers[0].grid.normal


def read_bytes(file: StoredFile, limit: int | None = None) -> bytes:
    """Read a file, or its first `limit` bytes. Raises `DicomError`."""
    try:
        return file.read(limit)
    except UnreadableFile as error:
        raise DicomError(str(error)) from error


def looks_like_dicom(start: bytes) -> bool:
    """Return whether a file begins as DICOM: with DICM after the preamble or, in old files, with a tag."""
    if start[128:PREAMBLE_BYTES] == b"DICM":
        return True
    order = "big" if start[:1] == b"\0" else "little"
    return start[:2] in _FIRST_GROUPS and int.from_bytes(start[2:4], order) <= _LAST_FIRST_ELEMENT


def parse_header(
    values: Mapping[str, Any], file: StoredFile, transfer_syntax: str, pixels_at: int | None
) -> Header:
    """Build the header of one slice.

    Args:
        values: values of `KEYWORDS`; None where missing, `MALFORMED` where they cannot be parsed. Those of
            `DECIMAL_KEYWORDS` may be text.
        pixels_at: offset in the file at which the pixel data element begins, if known.

    Raises:
        DicomError: not a CT slice, or a required value is missing or implausible.
    """
    _check_kind(values)
    orientation = _floats(values, "ImageOrientationPatient", 6)
    row_mm, col_mm = _floats(values, "PixelSpacing", 2)
    bits_stored = int(_number(values, "BitsStored" if values["BitsStored"] else "BitsAllocated"))
    high_bit = _optional_int(values["HighBit"]) or bits_stored - 1  # empty reads as 0 or None
    header = Header(
        file=file,
        instance_number=_optional_int(values["InstanceNumber"]) or 0,
        rows=int(_number(values, "Rows")),
        cols=int(_number(values, "Columns")),
        position_mm=_floats(values, "ImagePositionPatient", 3),
        along_cols=orientation[:3],
        along_rows=orientation[3:],
        row_mm=row_mm,
        col_mm=col_mm,
        bits_allocated=int(_number(values, "BitsAllocated")),
        bits_stored=bits_stored,
        shift_bits=max(0, high_bit + 1 - bits_stored),
        signed=values["PixelRepresentation"] not in (None, 0),
        inverted=values["PhotometricInterpretation"] == "MONOCHROME1",
        slope=_number(values, "RescaleSlope") if _parts(values["RescaleSlope"]) else 1.0,
        intercept=_number(values, "RescaleIntercept") if _parts(values["RescaleIntercept"]) else 0.0,
        rescale_type=_text(values["RescaleType"]),
        padding=_padding(values),
        transfer_syntax=transfer_syntax,
        modality=_text(values["Modality"]),
        patient_id=_text(values["PatientID"]),
        study_uid=_text(values["StudyInstanceUID"]),
        series_uid=_text(values["SeriesInstanceUID"]),
        frame_uid=_text(values["FrameOfReferenceUID"]),
        acquisition_number=_optional_int(values["AcquisitionNumber"]) or None,  # empty reads as 0 or None
        acquisition_time=_text(values["AcquisitionTime"]),
        content_time=_text(values["ContentTime"]),
        image_type=_image_type(values),
        pixels_at=pixels_at,
        mended=_describe_commas(values),
    )
    _check_numbers(header)
    return header


def _check_kind(values: Mapping[str, Any]) -> None:
    """Refuse images that are not CT slices in HU. A file without Modality is accepted."""
    modality = _text(values["Modality"])
    if modality not in ("", "CT"):
        raise DicomError(f"modality {modality}, not CT")
    if _image_type(values).upper().split("\\")[2:3] == ["LOCALIZER"]:
        raise DicomError("localizer, not a slice")
    colours = _text(values["PhotometricInterpretation"])
    if values["SamplesPerPixel"] not in (None, 0, 1) or not (colours + "MONOCHROME").startswith("MONOCHROME"):
        raise DicomError("colour image, not CT")
    if values["Rows"] is None:
        raise DicomError("holds no image")
    if not values["SamplesPerPixel"]:
        raise DicomError("SamplesPerPixel is missing")
    if (_optional_int(values["NumberOfFrames"]) or 1) != 1:
        raise DicomError(f"holds {values['NumberOfFrames']} frames without a position each")
    unit = _text(values["RescaleType"])
    if unit.upper() in _OTHER_UNITS:
        raise DicomError(f"pixels are {unit}, not HU")
    if values["ModalityLUTSequence"]:
        raise DicomError("pixels become HU by a table, not by a rescale")


def _check_numbers(header: Header) -> None:
    """Refuse sizes, positions, directions and rescales that no scanner writes."""
    numbers = (*header.position_mm, *header.along_cols, *header.along_rows)
    numbers += (header.row_mm, header.col_mm, header.slope, header.intercept)
    plausible = all(abs(number) < _MAX_PLAUSIBLE for number in numbers)  # also rejects NaN
    unit = all(abs(math.hypot(*axis) - 1) < 0.01 for axis in (header.along_cols, header.along_rows))
    cosine = sum(a * b for a, b in zip(header.along_cols, header.along_rows, strict=True))
    bits = 1 <= header.bits_stored <= min(16, header.bits_allocated) - header.shift_bits
    sizes = all(0 < side <= _MAX_PIXELS for side in (header.rows, header.cols))
    pixels = all(_PIXEL_MM[0] <= side <= _PIXEL_MM[1] for side in (header.row_mm, header.col_mm))
    if not (plausible and unit and abs(cosine) < 0.01 and bits and sizes and pixels and header.slope != 0):
        raise DicomError("size, position, orientation, spacing or rescale makes no sense")
    if header.windowed and header.signed:
        raise DicomError("signed 8-bit pixels are neither HU nor grey levels")


def _padding(values: Mapping[str, Any]) -> tuple[int, int] | None:
    first = values["PixelPaddingValue"]
    if not isinstance(first, int) or abs(first) >= 1 << 16:
        return None
    last = values["PixelPaddingRangeLimit"]
    return (first, last if isinstance(last, int) and abs(last) < 1 << 16 else first)


def _image_type(values: Mapping[str, Any]) -> str:
    parts = values["ImageType"]
    return (
        _text(parts) if isinstance(parts, str) or parts in (None, MALFORMED) else "\\".join(map(str, parts))
    )


def _text(value: Any) -> str:
    return str(value).strip(" \0") if isinstance(value, str) else ""


def _optional_int(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _number(values: Mapping[str, Any], keyword: str) -> float:
    return _floats(values, keyword, 1)[0]


def _floats(values: Mapping[str, Any], keyword: str, count: int) -> tuple[float, ...]:
    parts = _parts(values[keyword])
    if not parts:
        raise DicomError(f"{keyword} is missing")
    try:  # programs of some countries write 0,75: the standard has no comma in a DS
        numbers = tuple(float(part.replace(",", ".") if isinstance(part, str) else part) for part in parts)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count:
        shown = "\\".join(ascii(str(part))[1:-1] for part in parts if part is not MALFORMED)
        raise DicomError(f"{keyword} is malformed: {shown[:_SHOWN_CHARACTERS]}".removesuffix(": "))
    return numbers


def _parts(value: Any) -> list[Any]:
    """Return the numbers, or texts of numbers, of a tag; none if it is missing or empty."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        return [part.strip(" \0") for part in value.split("\\")] if value.strip(" \0") else []
    if value is None:
        return []
    return list(value) if isinstance(value, Iterable) else [value]


def _describe_commas(values: Mapping[str, Any]) -> tuple[str, ...]:
    named = [
        keyword
        for keyword in DECIMAL_KEYWORDS
        if any(isinstance(part, str) and "," in part for part in _parts(values[keyword]))
    ]
    return (f"decimal commas read as points in {', '.join(named)}",) if named else ()
