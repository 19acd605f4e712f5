"""Write a series as DICOM files with variants of real data: syntaxes, bits, intercepts, order, duplicates."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from openjpeg.utils import encode_buffer
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from src.phantom.shapes import Array
from src.phantom.voxel_grid import Scan

SYNTAXES = (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless)
SYNTAX_SHARES = (0.5, 0.35, 0.15)
# (BitsStored, PixelRepresentation, RescaleIntercept); each can store HU from -1024 to 2000.
ENCODINGS = (
    (16, 1, 0),
    (16, 0, -1024),
    (12, 1, 0),
    (12, 0, -1024),
    (13, 1, -1024),
    (16, 0, -8192),
    (16, 0, -32768),
)
ENCODING_SHARES = (0.2, 0.2, 0.2, 0.14, 0.1, 0.1, 0.06)
ORDERS = ("feet_first", "shuffled", "head_first")
ORDER_SHARES = (0.5, 0.25, 0.25)
DUPLICATE_RATE = 0.3
TURNED_RATE = 0.1
DIRTY_RATE = 0.7  # share of series with garbage in the high bits, if these are unused


@dataclass(frozen=True)
class Storage:
    """Storage of one series. `instance_numbers[k]` belongs to slice k; slice 0 is nearest the head."""

    syntax: str
    bits_stored: int
    signed: int
    intercept: int
    dirty_high_bits: bool
    turned: bool  # rows run to the front and columns to the right: orientation -1 0 0 0 -1 0
    patient_position: str
    instance_numbers: tuple[int, ...]
    duplicate_of: int | None  # index of the slice that is stored twice, or None

    @classmethod
    def draw(cls, slices: int, rng: np.random.Generator) -> "Storage":
        """Draw the variants of a series; instances are numbered from the feet, shuffled or from the head."""
        syntax = SYNTAXES[rng.choice(len(SYNTAXES), p=SYNTAX_SHARES)]
        bits_stored, signed, intercept = ENCODINGS[rng.choice(len(ENCODINGS), p=ENCODING_SHARES)]
        dirty = bits_stored < 16 and rng.uniform() < DIRTY_RATE
        turned, position = rng.uniform() < TURNED_RATE, str(rng.choice(["FFS", "HFS"], p=[0.6, 0.4]))
        duplicate = int(rng.integers(2, slices - 2)) if rng.uniform() < DUPLICATE_RATE else None
        first = int(rng.choice([1, 1, 1, rng.integers(2, 300)]))
        numbers = np.arange(first, first + slices)
        order = ORDERS[rng.choice(len(ORDERS), p=ORDER_SHARES)]
        if order == "feet_first":
            numbers = numbers[::-1]
        elif order == "shuffled":
            numbers = rng.permutation(numbers)
        if dirty and syntax == JPEG2000Lossless:
            syntax = ExplicitVRLittleEndian  # JPEG 2000 codes BitsStored bits only, which excludes garbage
        return cls(
            syntax,
            bits_stored,
            signed,
            intercept,
            dirty,
            turned,
            position,
            tuple(numbers.tolist()),
            duplicate,
        )

    def instances(self) -> list[tuple[int, int]]:
        """Return (instance number, slice) of every file; a duplicate slice repeats with the last number."""
        pairs = [(number, k) for k, number in enumerate(self.instance_numbers)]
        if self.duplicate_of is not None:
            pairs.append((max(self.instance_numbers) + 1, self.duplicate_of))
        return pairs


def write_series(
    folder: Path,
    hu: Array,
    scan: Scan,
    storage: Storage,
    patient_id: int,
    series_id: int,
    rng: np.random.Generator,
) -> None:
    """Write `hu` (Z, Y, X), int16, as `<instance number>.dcm` files into the existing `folder`."""
    dataset = _series_header(scan, storage, patient_id, series_id)
    for number, k in storage.instances():
        pixels = hu[k, ::-1, ::-1] if storage.turned else hu[k]
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[f"{series_id} {number}"])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.InstanceNumber = number
        dataset.ImagePositionPatient = _decimals(_position_mm(k, scan, storage))
        _store(dataset, stored_values(pixels, storage, rng), storage)
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def stored_values(hu: Array, storage: Storage, rng: np.random.Generator) -> Array:
    """Convert HU to stored uint16 words, with random bits above BitsStored if the series is dirty."""
    words = (hu.astype(np.int32) - storage.intercept).astype(np.uint16)  # two's complement of signed values
    if not storage.dirty_high_bits:
        return words
    mask = np.uint16((1 << storage.bits_stored) - 1)
    garbage = rng.integers(0, 1 << 16, words.shape, np.uint16)
    return (words & mask) | (garbage & ~mask)


def _series_header(scan: Scan, storage: Storage, patient_id: int, series_id: int) -> Dataset:
    """Return the header that all files of a series share, without pixels, position, number and UID."""
    turn = -1 if storage.turned else 1
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.TransferSyntaxUID = storage.syntax
    dataset.PatientID, dataset.PatientName = str(patient_id), f"Phantom^{patient_id}"
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[f"study {patient_id}"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[f"series {series_id}"])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[f"frame {patient_id}"])
    dataset.SeriesNumber = 2
    dataset.Modality, dataset.ImageType, dataset.KVP = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], "120"
    dataset.PatientPosition = storage.patient_position
    dataset.ImageOrientationPatient = [turn, 0, 0, 0, turn, 0]
    dataset.PixelSpacing = _decimals(scan.spacing_mm[1:])
    dataset.SliceThickness = _decimals(scan.spacing_mm[:1])[0]
    dataset.Rows, dataset.Columns = scan.shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = (
        16,
        storage.bits_stored,
        storage.bits_stored - 1,
    )
    dataset.PixelRepresentation = storage.signed
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1", str(storage.intercept), "HU"
    dataset.WindowCenter, dataset.WindowWidth = "50", "400"
    return dataset


def _position_mm(k: int, scan: Scan, storage: Storage) -> tuple[float, float, float]:
    """Return the DICOM position of the first stored pixel of slice `k`: the far corner if rotated."""
    (dz, dy, dx), (x, y, top) = scan.spacing_mm, scan.first_voxel_mm
    if storage.turned:
        x, y = x + dx * (scan.shape[2] - 1), y + dy * (scan.shape[1] - 1)
    return x, y, top - k * dz


def _store(dataset: Dataset, words: Array, storage: Storage) -> None:
    """Set the pixel data of a file, compressed by its transfer syntax."""
    raw = np.ascontiguousarray(words).astype("<u2").tobytes()
    rows, columns = words.shape
    if storage.syntax == RLELossless:
        encoded = RLELosslessEncoder.encode(
            raw,
            rows=rows,
            columns=columns,
            samples_per_pixel=1,
            number_of_frames=1,
            bits_allocated=16,
            bits_stored=16,  # all 16, so that unused high bits are kept
            pixel_representation=storage.signed,
            photometric_interpretation="MONOCHROME2",
            encoding_plugin="gdcm",
        )
        dataset.PixelData = encapsulate([encoded])
    elif storage.syntax == JPEG2000Lossless:
        # Called directly: through pydicom this encoder would need another package.
        encoded = encode_buffer(raw, columns, rows, 1, storage.bits_stored, bool(storage.signed))
        dataset.PixelData = encapsulate([encoded])
    else:
        dataset.PixelData = raw
    dataset["PixelData"].VR = "OW" if storage.syntax == ExplicitVRLittleEndian else "OB"


def _decimals(values_mm: Sequence[float]) -> list[str]:
    """Format numbers as DICOM decimal strings, which have at most 16 characters."""
    return [f"{round(value, 6):.10g}" for value in values_mm]
