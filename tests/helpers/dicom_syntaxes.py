"""CT files of a made-up patient in every transfer syntax that can be written here.

The values that go in are the STORED ones, before the rescale. Lossless syntaxes give them back exactly, lossy
ones within `tolerance` on a smooth image such as `ramp`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder

from tests.helpers.dicom_files import ct_dataset
from tests.helpers.jpeg_encoders import jpeg_lossless, jpeg_lossy

SYNTAXES: dict[str, uid.UID] = {
    "implicit little endian": uid.ImplicitVRLittleEndian,
    "explicit little endian": uid.ExplicitVRLittleEndian,
    "explicit big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "RLE": uid.RLELossless,
    "JPEG baseline": uid.JPEGBaseline8Bit,
    "JPEG extended": uid.JPEGExtended12Bit,
    "JPEG lossless": uid.JPEGLossless,
    "JPEG lossless SV1": uid.JPEGLosslessSV1,
    "JPEG-LS lossless": uid.JPEGLSLossless,
    "JPEG-LS near-lossless": uid.JPEGLSNearLossless,
    "JPEG 2000 lossless": uid.JPEG2000Lossless,
    "JPEG 2000": uid.JPEG2000,
}
NATIVE = {
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
}
LOSSY = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000}
_PREDICTOR = {uid.JPEGLossless: 4, uid.JPEGLosslessSV1: 1}  # selection value that is written


def ramp(bits_stored: int, signed: bool, shape: tuple[int, int] = (40, 48)) -> np.ndarray:
    """A smooth image (rows, cols), int64, over the whole range of stored values but for four at each end.

    Lossy coding of signed words may wrap from the largest value to the smallest, so these are left out.
    """
    share = np.add.outer(np.linspace(0, 0.7, shape[0]) ** 2, np.linspace(0, 0.51, shape[1]))
    values = np.rint(4 + share / share.max() * ((1 << bits_stored) - 9)).astype(np.int64)
    return values - (1 << bits_stored - 1 if signed else 0)


def tolerance(syntax: uid.UID, bits_stored: int) -> int:
    """Largest error to expect of `ramp`, in stored values; 0 where the syntax is lossless."""
    if syntax == uid.JPEG2000:
        return max(2, 1 << bits_stored >> 7)
    return 2 if syntax in LOSSY else 0


def can_write(syntax: uid.UID, bits_stored: int, signed: bool) -> bool:
    """Lossy JPEG is unsigned, of 8 bits (baseline) or 12 (extended); all others take any depth."""
    lossy_bits = {uid.JPEGBaseline8Bit: 8, uid.JPEGExtended12Bit: 12}.get(syntax)
    return lossy_bits is None or (bits_stored == lossy_bits and not signed)


def write_encoded(
    path: Path,
    stored: np.ndarray,
    syntax: uid.UID,
    *,
    bits_stored: int,
    signed: bool,
    bits_allocated: int | None = None,
    dirty_bits: int = 0,
    fragments: int = 1,
    offset_table: bool = True,
    codestream_signed: bool | None = None,
    precision: int | None = None,
    **tags,
) -> Path:
    """Write a CT slice whose stored values are `stored` (rows, cols).

    `dirty_bits` lie above BitsStored (native and RLE only). A codestream is cut into `fragments` pieces of
    even length. `codestream_signed` makes a JPEG 2000 codestream state another sign than PixelRepresentation
    does, with the same bits under it; `precision` is what a lossless JPEG states (BitsStored, where none is
    given). `tags` are set last, by keyword.
    """
    dataset = ct_dataset(
        stored.shape, syntax, bits_allocated or (8 if bits_stored <= 8 else 16), bits_stored, signed
    )
    if syntax in NATIVE:
        dataset.PixelData = _native(dataset, stored, dirty_bits, big_endian=syntax == uid.ExplicitVRBigEndian)
    else:
        frame = _encode(dataset, stored, dirty_bits, codestream_signed, precision)
        dataset.PixelData = encapsulate([frame], fragments_per_frame=fragments, has_bot=offset_table)
    dataset.ImagePositionPatient = [0.0, 0.0, 0.0]
    dataset.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    dataset.PixelSpacing = [1.0, 1.0]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1.0, 0.0
    return _save(dataset, path, tags)


def write_enhanced(
    path: Path,
    stored: np.ndarray,
    syntax: uid.UID,
    *,
    bits_stored: int,
    signed: bool,
    positions_mm: Sequence[Sequence[float]],
    pixel_mm: Sequence[float] = (1.0, 1.0),
    intercept: float = 0.0,
    offset_table: bool = True,
    fragments: int = 1,
) -> Path:
    """Write one enhanced CT file whose frames are `stored` (n, rows, cols), frame i at `positions_mm[i]`.

    Position stands in PerFrameFunctionalGroupsSequence (5200,9230), all else in
    SharedFunctionalGroupsSequence (5200,9229), as PS3.3 A.38.1 has it.
    """
    dataset = ct_dataset(stored.shape[1:], syntax, 8 if bits_stored <= 8 else 16, bits_stored, signed)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid.EnhancedCTImageStorage
    dataset.NumberOfFrames = len(stored)
    if syntax in NATIVE:
        big_endian = syntax == uid.ExplicitVRBigEndian
        dataset.PixelData = b"".join(_native(dataset, frame, 0, big_endian) for frame in stored)
    else:
        frames = [_encode(dataset, frame) for frame in stored]
        dataset.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=offset_table)
    dataset.SharedFunctionalGroupsSequence = [
        _item(
            PixelMeasuresSequence=[_item(PixelSpacing=list(pixel_mm), SliceThickness=1.0)],
            PlaneOrientationSequence=[_item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelValueTransformationSequence=[
                _item(RescaleIntercept=intercept, RescaleSlope=1.0, RescaleType="HU")
            ],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        _item(PlanePositionSequence=[_item(ImagePositionPatient=list(position))]) for position in positions_mm
    ]
    return _save(dataset, path, {})


def _item(**tags) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.update(tags)
    return item


def _save(dataset: pydicom.Dataset, path: Path, tags: dict) -> Path:
    dataset["PixelData"].VR = "OB" if dataset.file_meta.TransferSyntaxUID not in NATIVE else "OW"
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _words(dataset: pydicom.Dataset, stored: np.ndarray, dirty_bits: int = 0) -> np.ndarray:
    """Bit patterns as they lie in a file of the dataset's depth, unsigned."""
    used = (1 << dataset.BitsStored) - 1
    words = (stored.astype(np.int64) & used) | (dirty_bits & ~used)
    return words.astype(f"u{dataset.BitsAllocated // 8}")


def _native(dataset: pydicom.Dataset, stored: np.ndarray, dirty_bits: int, big_endian: bool) -> bytes:
    words = _words(dataset, stored, dirty_bits)
    content = words.tobytes() + b"\0" * (words.nbytes % 2)
    if not big_endian:
        return content
    return np.frombuffer(content, np.uint16).byteswap().tobytes()  # OW: bytes of two 8-bit pixels swap too


def _encode(
    dataset: pydicom.Dataset,
    stored: np.ndarray,
    dirty_bits: int = 0,
    codestream_signed: bool | None = None,
    precision: int | None = None,
) -> bytes:
    """One frame (rows, cols) as a codestream of the dataset's transfer syntax."""
    syntax, bits_stored = dataset.file_meta.TransferSyntaxUID, dataset.BitsStored
    words = _words(dataset, stored, dirty_bits)
    if syntax in _PREDICTOR:
        return jpeg_lossless(words, precision or bits_stored, _PREDICTOR[syntax])
    if syntax in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit):
        return jpeg_lossy(words, precision or bits_stored)
    is_signed = bool(dataset.PixelRepresentation) if codestream_signed is None else codestream_signed
    options = {uid.JPEGLSNearLossless: {"jls_error": 2}, uid.JPEG2000: {"j2k_psnr": [70]}}.get(syntax, {})
    if syntax in uid.JPEG2000TransferSyntaxes and is_signed:  # only JPEG 2000 knows signs in its codestream
        free = dataset.BitsAllocated - bits_stored
        words = (words << free).view(f"i{words.itemsize}") >> free
    return bytes(
        get_encoder(syntax).encode(
            words.tobytes(),
            rows=dataset.Rows,
            columns=dataset.Columns,
            samples_per_pixel=1,
            number_of_frames=1,
            bits_allocated=dataset.BitsAllocated,
            bits_stored=bits_stored,
            pixel_representation=int(is_signed),
            photometric_interpretation="MONOCHROME2",
            encoding_plugin="pydicom" if syntax == uid.RLELossless else "",
            **options,
        )
    )
