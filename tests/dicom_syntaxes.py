"""CT files of a made-up patient in every transfer syntax that can be written here.

The values that go in are the STORED ones, before the rescale. Lossless syntaxes give them back exactly, lossy
ones within `tolerance` on a smooth image such as `ramp`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder

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
    dataset = _dataset(stored.shape, syntax, bits_stored, signed, bits_allocated)
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
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    pixel_mm: Sequence[float] = (1.0, 1.0),
    slope: float = 1.0,
    intercept: float = 0.0,
    offset_table: bool = True,
    fragments: int = 1,
    **tags,
) -> Path:
    """Write one enhanced CT file whose frames are `stored` (n, rows, cols), frame i at `positions_mm[i]`.

    Position stands in PerFrameFunctionalGroupsSequence (5200,9230), all else in
    SharedFunctionalGroupsSequence (5200,9229), as PS3.3 A.38.1 has it.
    """
    dataset = _dataset(stored.shape[1:], syntax, bits_stored, signed, None)
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
            PlaneOrientationSequence=[_item(ImageOrientationPatient=list(orientation))],
            PixelValueTransformationSequence=[
                _item(RescaleIntercept=intercept, RescaleSlope=slope, RescaleType="HU")
            ],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        _item(PlanePositionSequence=[_item(ImagePositionPatient=list(position))]) for position in positions_mm
    ]
    return _save(dataset, path, tags)


def jpeg_lossless(words: np.ndarray, precision: int, predictor: int) -> bytes:
    """Encode unsigned words (rows, cols) as JPEG lossless: ITU-T T.81 annex H, SOF3, predictor 1 or 4."""
    values = words.astype(np.int64)
    left, above = np.roll(values, 1, axis=1), np.roll(values, 1, axis=0)
    predicted = left.copy() if predictor == 1 else left + above - np.roll(above, 1, axis=1)
    predicted[0], predicted[1:, 0] = left[0], above[1:, 0]  # no neighbour above, and none at the left
    predicted[0, 0] = 1 << precision - 1
    differences = (values - predicted + 32767) % 65536 - 32767  # -32767 ... 32768
    bits = []
    for difference in differences.ravel().tolist():
        category, extra = _category(difference)
        bits.append(f"{category:05b}" + ("" if category == 16 else extra))
    scan = bytes([1, 1, 0, predictor, 0, 0])
    return _jpeg(0xC3, words.shape, precision, [_huffman_table(0x00, 5, range(17))], scan, bits)


def jpeg_lossy(words: np.ndarray, precision: int) -> bytes:
    """Encode unsigned words (rows, cols) by DCT, quantised by 1: T.81 baseline (8 bits) or extended (12)."""
    rows, cols = words.shape
    padded = np.pad(words.astype(float), ((0, -rows % 8), (0, -cols % 8)), mode="edge") - (1 << precision - 1)
    blocks = padded.reshape(len(padded) // 8, 8, -1, 8).swapaxes(1, 2).reshape(-1, 8, 8)
    frequency, place = np.mgrid[:8, :8]
    basis = np.cos((2 * place + 1) * frequency * np.pi / 16) * np.where(frequency == 0, 8**-0.5, 0.5)
    zigzag = sorted(np.ndindex(8, 8), key=lambda uv: (sum(uv), uv[sum(uv) % 2 == 0]))
    coefficients = np.rint(basis @ blocks @ basis.T).astype(int)[:, *np.transpose(zigzag)]  # (blocks, 64)
    symbols = [0x00, 0xF0, *(run << 4 | size for run in range(16) for size in range(1, 15))]
    codes = {symbol: f"{index:08b}" for index, symbol in enumerate(symbols)}  # end of block, 16 zeros, ...
    bits, previous = [], 0
    for first, *others in coefficients.tolist():
        category, extra = _category(first - previous)
        bits.append(f"{category:05b}{extra}")
        previous, run = first, 0
        for value in others:
            if value == 0:
                run += 1
                continue
            category, extra = _category(value)
            bits.append(codes[0xF0] * (run // 16) + codes[run % 16 << 4 | category] + extra)
            run = 0
        bits.append(codes[0x00] if run else "")
    tables = [
        (0xDB, bytes([0, *[1] * 64])),
        _huffman_table(0x00, 5, range(16)),
        _huffman_table(0x10, 8, symbols),
    ]
    start = 0xC0 if precision == 8 else 0xC1
    return _jpeg(start, words.shape, precision, tables, bytes([1, 1, 0, 0, 63, 0]), bits)


def _category(value: int) -> tuple[int, str]:
    """Magnitude category of a coefficient and the bits that follow it: T.81 tables F.1 and H.2."""
    size = abs(value).bit_length()
    return size, f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else ""


def _huffman_table(place: int, length: int, symbols: Sequence[int]) -> tuple[int, bytes]:
    """A table whose codes all have the same length: not short, but plain."""
    counts = [len(symbols) if bits == length else 0 for bits in range(1, 17)]
    return 0xC4, bytes([place, *counts, *symbols])


def _jpeg(
    start: int, shape: tuple[int, int], precision: int, tables: list, scan: bytes, bits: list[str]
) -> bytes:
    frame = bytes([precision, *shape[0].to_bytes(2, "big"), *shape[1].to_bytes(2, "big"), 1, 1, 0x11, 0])
    segments = (
        bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body
        for marker, body in ((start, frame), *tables, (0xDA, scan))
    )
    entropy = "".join(bits)
    entropy += "1" * (-len(entropy) % 8)
    coded = int(entropy, 2).to_bytes(len(entropy) // 8, "big").replace(b"\xff", b"\xff\x00")
    return b"\xff\xd8" + b"".join(segments) + coded + b"\xff\xd9"


def _dataset(
    shape: tuple[int, int], syntax: uid.UID, bits_stored: int, signed: bool, bits_allocated: int | None
) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid.generate_uid()
    dataset.Modality = "CT"
    dataset.PatientPosition = "HFS"
    dataset.InstanceNumber = 1
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = bits_allocated or (8 if bits_stored <= 8 else 16)
    dataset.BitsStored, dataset.HighBit = bits_stored, bits_stored - 1
    dataset.PixelRepresentation = int(signed)
    return dataset


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
