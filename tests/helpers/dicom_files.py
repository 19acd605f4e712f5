"""Small real DICOM series of a made-up patient, written by pydicom in any orientation and encoding."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from src.ct import dicom_series
from src.ct.dicom_header import Header
from src.ct.dicom_readers import read_headers
from src.ct.series import CtSeries
from src.ct.storage import LocalFile, LocalFolder

PIXEL_MM = 4.0
SPACING_Z_MM = 5.0
SIDE = 64  # pixels of a slice


def hu_at(x_mm: np.ndarray, y_mm: np.ndarray, z_mm: np.ndarray) -> np.ndarray:
    """HU in patient space (left, back, head): a body with a liver on its right and a spine at its back."""
    hu = np.full(np.broadcast(x_mm, y_mm, z_mm).shape, -1000.0)
    hu[(x_mm / 100) ** 2 + (y_mm / 70) ** 2 + 0 * z_mm < 1] = 40
    hu[(x_mm + 50) ** 2 + (y_mm + 10) ** 2 + (z_mm - 10) ** 2 < 30**2] = 120
    hu[np.broadcast_to(x_mm**2 + (y_mm - 50) ** 2 < 12**2, hu.shape)] = 600
    return hu


def ct_dataset(
    shape: tuple[int, int], syntax: str, bits_allocated: int, bits_stored: int, signed: bool
) -> pydicom.Dataset:
    """A CT image without place and pixels."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Modality, dataset.PatientPosition, dataset.InstanceNumber = "CT", "HFS", 1
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits_allocated, bits_stored, bits_stored - 1
    dataset.PixelRepresentation = int(signed)
    return dataset


def write_slice(
    path: Path,
    hu: np.ndarray,
    *,
    position_mm=(0.0, 0.0, 0.0),
    orientation=(1, 0, 0, 0, 1, 0),
    pixel_mm=(PIXEL_MM, PIXEL_MM),
    instance_number=1,
    bits_stored=16,
    signed=True,
    slope=1.0,
    intercept=0.0,
    photometric="MONOCHROME2",
    padding=None,
    dirty_bits=0,
    rle=False,
    inverted=None,
    **tags,
) -> Path:
    """Write HU (rows, cols) so that a correct reader restores them; `dirty_bits` lie above BitsStored.

    MONOCHROME1 inverts the values, if `inverted` does not say otherwise. `tags` are set last, by keyword.
    """
    stored = np.rint((np.asarray(hu, dtype=np.float64) - intercept) / slope).astype(np.int64)
    if photometric == "MONOCHROME1" if inverted is None else inverted:
        stored = (-1 if signed else (1 << bits_stored) - 1) - stored
    used = (1 << bits_stored) - 1
    depth = 8 if bits_stored <= 8 else 16
    words = ((stored & used) | (dirty_bits & ~used)).astype(f"u{depth // 8}")

    dataset = ct_dataset(words.shape, ExplicitVRLittleEndian, depth, bits_stored, signed)
    dataset.InstanceNumber = instance_number
    dataset.ImagePositionPatient = [float(value) for value in position_mm]
    dataset.ImageOrientationPatient = [float(value) for value in orientation]
    dataset.PixelSpacing = list(pixel_mm)
    dataset.PhotometricInterpretation = photometric
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
    if padding is not None:
        dataset.add_new("PixelPaddingValue", "SS" if signed else "US", padding)
    dataset.PixelData = words.tobytes()
    if rle:
        dataset.compress(RLELossless)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    *,
    n_slices=12,
    along_cols=(1, 0, 0),
    along_rows=(0, 1, 0),
    shift_mm=(0, 0, 0),
    first=1,
    add_hu=0,
    **encoding,
) -> Path:
    """Write the patient of `hu_at` on a grid centred at `shift_mm`, first file at the feet.

    Column and row indices grow along the two unit vectors. Files and InstanceNumber count from `first`.
    """
    cols_axis, rows_axis = np.array(along_cols, dtype=float), np.array(along_rows, dtype=float)
    normal = np.cross(cols_axis, rows_axis)
    normal *= np.sign(normal[np.abs(normal).argmax()])
    half = (SIDE - 1) / 2 * PIXEL_MM
    row, col = np.mgrid[:SIDE, :SIDE] * PIXEL_MM
    for index in range(n_slices):
        centre = np.array(shift_mm) + normal * SPACING_Z_MM * (index - (n_slices - 1) / 2)
        origin = centre - half * (cols_axis + rows_axis)
        points = origin + col[..., None] * cols_axis + row[..., None] * rows_axis
        write_slice(
            folder / f"{first + index}.dcm",
            hu_at(points[..., 0], points[..., 1], points[..., 2]) + add_hu,
            position_mm=origin,
            orientation=(*cols_axis, *rows_axis),
            instance_number=first + index,
            **encoding,
        )
    return folder


def read_header(path: Path) -> Header:
    """The header of a file that holds one slice."""
    (header,) = read_headers(LocalFile(path))
    return header


def set_tags(path: Path, **tags) -> Path:
    """Change tags of a file by keyword; None deletes one."""
    dataset = pydicom.dcmread(path)
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def set_decimal_text(path: Path, keyword: str, text: str) -> Path:
    """Write any text as the value of a DS tag, which pydicom refuses to do."""
    content, element = path.read_bytes(), pydicom.dcmread(path).get_item(keyword)
    value = text.encode("latin-1")
    value += b" " * (len(value) % 2)
    start, end = element.value_tell, element.value_tell + element.length
    path.write_bytes(content[: start - 2] + len(value).to_bytes(2, "little") + value + content[end:])
    return path


def scan_series(folder: Path, **options) -> dicom_series.DicomSeries:
    return dicom_series.scan_series(LocalFolder(folder).list(), **options)


def read_volume(series: CtSeries) -> np.ndarray:
    """HU of every slice (slices, rows, cols)."""
    return np.stack([series.read(index) for index in range(len(series.z_mm))])
