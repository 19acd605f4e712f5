"""CT files for the benchmarks, from the phantom's anatomy: DICOM series and prepared sets of any length."""

from itertools import chain, cycle, islice
from pathlib import Path

import numpy as np
import pandas as pd
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

import prepare_data
from src.core.errors import UserError
from src.ct.dicom_series import DicomSeries, scan_series
from src.ct.storage import LocalFolder
from src.data.prepared import PreparedDataset, image_folder, slice_name
from src.phantom.generate import generate_dataset
from src.phantom.options import PhantomOptions


def phantom_series(folder: Path, spacing_z_mm: float) -> DicomSeries:
    """Write one phantom patient of 512 x 512 pixels into `folder`: noise of 12 to 15 HU in the middle."""
    return open_series(_make_phantom(folder, 512, spacing_z_mm))


def _make_phantom(folder: Path, matrix: int, spacing_z_mm: float) -> Path:
    """The folder of the only series."""
    one = {"patients": 1, "test_patients": 0, "two_phase_rate": 0, "jobs": 1}
    plan = generate_dataset(PhantomOptions(folder, matrix=matrix, spacing_z_mm=spacing_z_mm, **one))[0]
    return folder / "train_images" / str(plan.patient_id) / str(plan.series[0].series_id)


def open_series(folder: Path) -> DicomSeries:
    """The series of a folder of DICOM files.

    Raises:
        UserError: no such folder, or no CT series in it.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder} (--input)")
    return scan_series(LocalFolder(folder).list())


def write_series(folder: Path, slices: list[np.ndarray], n_slices: int, pixel_mm: float, syntax: str) -> Path:
    """Write `n_slices` files, 1 mm apart, that show `slices` (int16 HU) in order, each as often as needed.

    BitsStored is 16 and PixelRepresentation 1, as in most of the competition's files.
    """
    folder.mkdir(parents=True)
    datasets = [_dataset(hu, pixel_mm, syntax) for hu in slices]
    for number in range(1, n_slices + 1):
        dataset = datasets[(number - 1) * len(datasets) // n_slices]
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


def prepare_phantom(scratch: Path, quick: bool) -> tuple[Path, float]:
    """A prepared set of one series of 256 px and three windows, and the mean size of its slices in KB."""
    raw, prepared = scratch / "raw", scratch / "prepared"
    _make_phantom(raw, *((256, 2.8) if quick else (512, 2.5)))
    prepare_data.main(["--input", str(raw), "--output", str(prepared), "--size", "256", "--jobs", "1"])
    sizes = [path.stat().st_size for path in prepared.glob("images/*/*/*.png")]
    return prepared, sum(sizes) / len(sizes) / 1e3


def link_prepared(phantom: Path, folder: Path, series: int, slices: int) -> PreparedDataset:
    """A prepared set of `series` patients "0", "1", ... with one series each of the same name.

    Args:
        phantom: prepared set; the slices of its first series are linked there and back again.
        slices: of each series, 2.5 mm apart.
    """
    folder.mkdir()
    (folder / "dataset.json").hardlink_to(phantom / "dataset.json")
    source = PreparedDataset.open(phantom).series.iloc[[0] * series].reset_index(drop=True)
    images = image_folder(phantom, source["patient_id"][0], source["series_id"][0])
    numbers = range(int(source["slices"][0]))
    names = [str(number) for number in range(series)]
    source.assign(slices=slices, patient_id=names, series_id=names).to_csv(folder / "series.csv", index=False)
    for name in names:
        target = image_folder(folder, name, name)
        target.mkdir(parents=True)
        for index, shown in enumerate(islice(cycle(chain(numbers, reversed(numbers))), slices)):
            (target / slice_name(index)).hardlink_to(images / slice_name(shown))
        pd.DataFrame({"z_mm": -2.5 * np.arange(slices)}).to_csv(target / "slices.csv", index=False)
    return PreparedDataset.open(folder)
