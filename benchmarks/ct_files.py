"""CT slices for the benchmarks: the phantom's anatomy as DICOM files of one syntax, any number of them."""

import os
import platform
from itertools import chain, cycle, islice
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from src.core.errors import UserError
from src.ct.dicom_series import DicomSeries, scan_series
from src.ct.storage import LocalFolder
from src.phantom.generate import generate_dataset
from src.phantom.options import PhantomOptions


def machine() -> str:
    """The machine, as far as a table of timings needs it."""
    python = f"Python {platform.python_version()}"
    return f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}, {python}"


def phantom_series(folder: Path, spacing_z_mm: float) -> DicomSeries:
    """Write one phantom patient of 512 x 512 pixels into `folder`: noise of 12 to 15 HU in the middle."""
    options = PhantomOptions(
        folder, patients=1, test_patients=0, matrix=512, spacing_z_mm=spacing_z_mm, two_phase_rate=0, jobs=1
    )
    plan = generate_dataset(options)[0]
    return open_series(folder / "train_images" / str(plan.patient_id) / str(plan.series[0].series_id))


def open_series(folder: Path) -> DicomSeries:
    """The series of a folder of DICOM files.

    Raises:
        UserError: no such folder, or no CT series in it.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder} (--input)")
    return scan_series(LocalFolder(folder).list())


def write_series(folder: Path, slices: list[np.ndarray], n_slices: int, pixel_mm: float, syntax: str) -> Path:
    """Write `n_slices` files, 1 mm apart, that show `slices` (int16 HU) there and back again.

    BitsStored is 16 and PixelRepresentation 1, as in most of the competition's files.
    """
    folder.mkdir(parents=True)
    datasets = [_dataset(hu, pixel_mm, syntax) for hu in slices]
    there_and_back = cycle(chain(datasets, reversed(datasets)))
    for number, dataset in enumerate(islice(there_and_back, n_slices), start=1):
        dataset.InstanceNumber = number
        dataset.ImagePositionPatient = [0, 0, -number]
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def _dataset(hu: np.ndarray, pixel_mm: float, syntax: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Modality, dataset.PhotometricInterpretation = "CT", "MONOCHROME2"
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [pixel_mm, pixel_mm]
    dataset.Rows, dataset.Columns = hu.shape
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 16, 15
    dataset.PixelRepresentation = 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelData = hu.astype("<i2").tobytes()
    if syntax == "RLE":
        dataset.compress(RLELossless, generate_instance_uid=False)
    return dataset
