"""Folders such as users have them, with tiny real files, and what `find_sources` found there."""

import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.uid import MediaStorageDirectoryStorage

from src.ct.series import OrganFiles, SeriesSource
from src.prepare.sources import FoundSources
from tests.helpers.dicom_files import write_slice
from tests.helpers.folders import write_files

SLICE = np.zeros((4, 4))


def dicom(
    path: Path,
    patient: str | None = "p",
    series: str | None = "1.2.3",
    study: str | None = "1.2",
    **tags: str,
) -> Path:
    """Write a slice with these ids; None leaves a tag away."""
    ids = {"PatientID": patient, "StudyInstanceUID": study, "SeriesInstanceUID": series, **tags}
    return write_slice(path, SLICE, **{tag: value for tag, value in ids.items() if value is not None})


def nifti(path: Path) -> Path:
    """Write a volume of zeros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.diag([2.0, 2, 2, 1])), path)
    return path


def text(path: Path, content: str = "text") -> Path:
    write_files(path.parent, {path.name: content.encode()})
    return path


def zipped(folder: Path) -> Path:
    """The folder as an archive beside it."""
    path = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inner in sorted(folder.rglob("*"), key=lambda item: item.name[::-1]):  # in no useful order
            archive.write(inner, inner.relative_to(folder))
    return path


def hospital_disk(folder: Path) -> Path:
    """Two patients, three series, in folders that say nothing; and what lies about on such disks."""
    dicom(folder / "A/IM0001", "p2", "1.9")
    dicom(folder / "A/IM0002", "p1", "1.8")
    dicom(folder / "B/C/IM0001", "p1", "1.8")
    dicom(folder / "B/C/IM0002.ima", "p1", "1.7")
    dicom(folder / "B/IM0003", "p1", "1.7")
    text(folder / "B/report.txt")
    text(folder / "picture.jpg", "x" * 200)
    text(folder / "empty", "")
    index = dicom(folder / "DICOMDIR", None, None, None)
    dataset = pydicom.dcmread(index)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MediaStorageDirectoryStorage
    dataset.save_as(index)
    return folder


def contents_of(segmentation) -> list[tuple[str, bytes]]:
    """Name and content of every file of a segmentation, with the labels of files of one organ each."""
    if isinstance(segmentation, OrganFiles):
        return [*((file.name, file.read()) for file in segmentation.files), segmentation.labels]
    return segmentation and [(segmentation.name, segmentation.read())]


def described(found: FoundSources) -> tuple:
    """Everything about a result that tables may show."""
    series = [
        (
            source.patient_id,
            source.series_id,
            source.kind,
            [file.name for file in source.files.list()],
            [file.read() for file in source.files.list()],
            contents_of(source.segmentation),
        )
        for source in found.series
    ]
    return found.name, series, found.left_out, found.other_files


def ids(found: FoundSources) -> list[tuple[str, str]]:
    """Patient and series of each series found."""
    return [(source.patient_id, source.series_id) for source in found.series]


def names(source: SeriesSource) -> list[str]:
    return [file.name for file in source.files.list()]
