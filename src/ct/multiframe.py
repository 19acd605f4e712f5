"""Enhanced CT: one file that holds all slices, split into single-slice files.

The single-slice files exist in memory only, one at a time: a header of a few hundred bytes, then the bytes of
one frame. The readers of single slices thus read frames too, and the file is parsed only once.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from src.ct.archives import unpacked
from src.ct.codestream import DELIMITER_TAG, ITEM_TAG, PIXEL_DATA_TAG, find_fragments
from src.ct.dicom_header import MALFORMED, DicomError, Header, parse_header
from src.ct.pydicom_reader import header_values, open_with_pydicom
from src.ct.storage import StoredFile, UnreadableFile

_LAYOUT = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
_FUNCTIONAL_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "FrameAcquisitionDateTime": "FrameContentSequence",
    "FrameType": "CTImageFrameTypeSequence",
}
_KEYWORD_OF_A_SLICE = {
    "FrameAcquisitionNumber": "AcquisitionNumber",
    "FrameAcquisitionDateTime": "AcquisitionTime",
    "FrameType": "ImageType",
}


@dataclass(frozen=True, eq=False)
class FrameFile:
    """One frame presented as a DICOM file: a `StoredFile`."""

    name: str
    content: mmap.mmap
    """The whole file, mapped."""
    spans: tuple[tuple[int, int], ...]
    """Start and length of each piece of the frame in `content`."""
    prefix: bytes
    """Bytes that precede the frame: a header, and the beginning of the pixel data element."""
    suffix: bytes

    def read(self, limit: int | None = None) -> bytes:
        pieces = (self.content[start : start + length] for start, length in self.spans)
        frame = b"".join(pieces)
        prefix = self.prefix
        if self.suffix:  # encapsulated: each item states its length
            prefix += len(frame).to_bytes(4, "little")
        return b"".join((prefix, frame, self.suffix))[:limit]

    def chunks(self) -> Iterator[bytes]:
        yield self.read()


def read_frames(file: StoredFile) -> list[Header]:
    """Read the header of each frame.

    Position, orientation, spacing and rescale come from PerFrameFunctionalGroupsSequence (5200,9230), else
    from SharedFunctionalGroupsSequence (5200,9229), else from the top level of the file.

    Raises:
        DicomError: damaged, not CT slices, deflated or big endian, or with frames of unknown boundaries.
    """
    content = _map(file)
    dataset = open_with_pydicom(content, pixels=False)
    pixels_at = content.tell()
    syntax = dataset.file_meta.get("TransferSyntaxUID", "")
    if content[pixels_at : pixels_at + 4] != PIXEL_DATA_TAG or syntax == ExplicitVRBigEndian:
        raise DicomError(f"many frames in the transfer syntax {getattr(syntax, 'name', syntax)}")
    try:
        n_frames = int(dataset.get("NumberOfFrames") or 1)
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
        frames = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
        values = header_values(dataset)
        spans = _spans(content, pixels_at, dataset, n_frames)
        prefix, suffix, part_pixels_at = _envelope(dataset, spans[0])
    # The sequences are parsed on access here, and damaged ones raise many kinds of errors.
    except DicomError:
        raise
    except Exception as error:
        raise DicomError("frames are missing or malformed") from error
    if len(frames) != n_frames:
        raise DicomError(f"holds {n_frames} frames and the positions of {len(frames)}")
    headers = []
    for index, (frame, span) in enumerate(zip(frames, spans, strict=True)):
        part = FrameFile(f"{file.name} frame {index + 1}", content, span, prefix, suffix)
        of_frame = {"NumberOfFrames": 1, "InstanceNumber": index + 1, **_group_values((frame, shared))}
        headers.append(parse_header({**values, **of_frame}, part, str(syntax), part_pixels_at))
    return headers


def _map(file: StoredFile) -> mmap.mmap:
    """Map the file into memory, unpacked first if it is compressed. The map outlives the open file."""
    try:
        with unpacked(file) as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except UnreadableFile as error:
        raise DicomError(str(error)) from error
    except (OSError, ValueError) as error:
        raise DicomError("file cannot be read") from error


def _group_values(groups: tuple[pydicom.Dataset, ...]) -> dict[str, Any]:
    """Read a frame's values by single-slice keyword; its own functional groups precede shared ones."""
    values = {}
    for keyword, sequence in _FUNCTIONAL_GROUPS.items():
        for group in groups:
            try:
                value = group[sequence][0].get(keyword) if sequence in group else None
            except Exception:  # pydicom parses a value on access
                value = MALFORMED
            if value is not None:
                name = _KEYWORD_OF_A_SLICE.get(keyword, keyword)
                values[name] = value
                break
    return values


def _spans(
    content: mmap.mmap, pixels_at: int, dataset: pydicom.Dataset, n_frames: int
) -> list[tuple[tuple[int, int], ...]]:
    """Return start and length in the file of each frame's pieces."""
    syntax = dataset.file_meta.TransferSyntaxUID
    value_at = pixels_at + (8 if syntax == ImplicitVRLittleEndian else 12)
    if not syntax.is_compressed:
        length = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
        return [((value_at + index * length, length),) for index in range(n_frames)]
    (table, *fragments), _ = find_fragments(content, value_at)
    if len(fragments) == n_frames:
        return [(fragment,) for fragment in fragments]
    if table[1] == 4 * n_frames:
        first = table[0] + table[1]
        offsets = np.frombuffer(content[table[0] : first], dtype="<u4")
        frame_of = np.searchsorted(offsets, [start - 8 - first for start, _ in fragments], side="right") - 1
    else:  # no offset table: a frame ends with the codestream's end marker and optional padding
        ends = [b"\xff\xd9" in content[start + length - 10 : start + length] for start, length in fragments]
        frame_of = np.cumsum([False, *ends[:-1]])
    spans = [
        tuple(fragments[k] for k in np.flatnonzero(frame_of == index).tolist()) for index in range(n_frames)
    ]
    if frame_of.size == 0 or frame_of.max() != n_frames - 1 or not all(spans):
        raise DicomError("frames cannot be distinguished")
    return spans


def _envelope(dataset: pydicom.Dataset, span: tuple[tuple[int, int], ...]) -> tuple[bytes, bytes, int]:
    """Return header, trailer and pixel data offset of the single-slice file around a frame."""
    part = pydicom.Dataset()
    part.file_meta = pydicom.dataset.FileMetaDataset()
    part.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    part.file_meta.MediaStorageSOPClassUID = part.SOPClassUID = dataset.SOPClassUID
    part.file_meta.MediaStorageSOPInstanceUID = part.SOPInstanceUID = dataset.SOPInstanceUID
    part.SamplesPerPixel, part.PhotometricInterpretation = 1, "MONOCHROME2"
    for keyword in _LAYOUT:
        setattr(part, keyword, dataset.get(keyword))
    buffer = BytesIO()
    part.save_as(buffer, enforce_file_format=True)
    header = buffer.getvalue()
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == ImplicitVRLittleEndian:
        return header + PIXEL_DATA_TAG + span[0][1].to_bytes(4, "little"), b"", len(header)
    if syntax == ExplicitVRLittleEndian:
        return header + PIXEL_DATA_TAG + b"OW\0\0" + span[0][1].to_bytes(4, "little"), b"", len(header)
    empty_table = ITEM_TAG + bytes(4)
    prefix = header + PIXEL_DATA_TAG + b"OB\0\0\xff\xff\xff\xff" + empty_table + ITEM_TAG
    return prefix, DELIMITER_TAG + bytes(4), len(header)
