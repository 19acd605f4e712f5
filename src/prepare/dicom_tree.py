"""DICOM files in any folders under any names, grouped into series by their headers.

Files of one series share PatientID (0010,0020) and SeriesInstanceUID (0020,000E). Only files that are not
DICOM are refused here; which files of a series are usable is decided when it is read.
"""

import hashlib
import os
import re
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pydicom
from joblib import Parallel, delayed
from pydicom.uid import MediaStorageDirectoryStorage

from src.core.log import progress
from src.ct.dicom_header import looks_like_dicom
from src.ct.series import Rejected, SeriesSource
from src.ct.storage import FileSet, FileTree, StoredFile, UnreadableFile, join, printable

_TAGS = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID"]
_HEAD_BYTES = 1 << 16  # contains these tags in nearly every file
_FILES_A_TASK = 512
_SUFFIXES = (".dcm", ".dicom", ".ima")  # files with these names that are not DICOM are reported
_OTHER_FORMATS = {
    **dict.fromkeys((".hdr", ".img"), "NIfTI pair or ANALYZE"),
    **dict.fromkeys((".nrrd", ".nhdr"), "NRRD"),
    **dict.fromkeys((".mha", ".mhd"), "MetaImage"),
}
_ID_BYTES = 100

Ids = tuple[str, str]


@dataclass
class _Scan:
    """Headers of some files of one folder, by file index."""

    series: dict[Ids, list[int]] = field(default_factory=lambda: defaultdict(list))
    unreadable: dict[int, str] = field(default_factory=dict)
    others: int = 0


def find_dicom(
    tree: FileTree, folders: list[tuple[str, tuple[str, ...]]], jobs: int
) -> tuple[list[SeriesSource], list[Rejected], int]:
    """Group files by patient and series, from the first 64 KB of each file.

    Uses pydicom, whose parser does not crash on damaged files; dicomsdl is hardly faster without pixels.

    Args:
        folders: folders with the names of the files to examine.
        jobs: number of processes.

    Returns:
        The series, sorted; unreadable files and volumes in formats that the kit does not read; and the number
        of other files that are not DICOM images.
    """
    tasks = [
        (folder, names[start : start + _FILES_A_TASK])
        for folder, names in folders
        for start in range(0, len(names), _FILES_A_TASK)
    ]
    path = Path(os.path.abspath(tree.path))
    fallback = path.stem if path.is_file() else path.name  # equal for a folder and its archive
    calls = (delayed(_scan)(tree.files(folder, names), folder or fallback) for folder, names in tasks)
    work = Parallel(n_jobs=jobs if len(tasks) > 1 else 1, return_as="generator")(calls)
    paths: dict[Ids, list[str]] = defaultdict(list)
    left_out, others = [], 0
    for (folder, names), scan in zip(tasks, progress(work, total=len(tasks), desc="headers"), strict=True):
        for ids, indices in scan.series.items():
            paths[ids].extend(join(folder, names[index]) for index in indices)
        left_out += [
            Rejected(printable(join(folder, names[index])), why) for index, why in scan.unreadable.items()
        ]
        others += scan.others
    return [SeriesSource(*ids, _file_set(tree, paths[ids])) for ids in sorted(paths)], left_out, others


def _file_set(tree: FileTree, paths: list[str]) -> FileSet:
    """Return the file set of paths below the innermost folder that contains them all."""
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return tree.files(folder, sorted(path[len(folder) :].lstrip("/") for path in paths))


def _scan(files: FileSet, folder: str) -> _Scan:
    scan = _Scan()
    with warnings.catch_warnings(action="ignore"):  # headers are checked when the series is read
        for index, file in enumerate(files.list()):
            try:
                ids = _read_ids(file, folder)
            except UnreadableFile as error:
                scan.unreadable[index] = str(error)
                continue
            if ids is None:
                scan.others += 1
            else:
                scan.series[ids].append(index)
    return scan


def _read_ids(file: StoredFile, folder: str) -> Ids | None:
    """Return a file's patient and series as safe folder names, None if it is not a DICOM image.

    StudyInstanceUID (0020,000D) replaces a missing PatientID, the folder a missing SeriesInstanceUID.
    """
    content = file.read(_HEAD_BYTES)
    if not looks_like_dicom(content):
        name = file.name.lower()
        if name.endswith(_SUFFIXES):
            raise UnreadableFile("not a readable DICOM file")
        if kind := _OTHER_FORMATS.get(Path(name.removesuffix(".gz")).suffix):
            raise UnreadableFile(f"{kind} file: convert it to .nii.gz")
        return None
    values = _read_tags(content)
    if "SeriesInstanceUID" not in values and len(content) == _HEAD_BYTES:
        values = _read_tags(file.read())  # a long private element precedes the tags
    if values.get("directory"):
        return None
    patient_id = values.get("PatientID") or values.get("StudyInstanceUID") or folder
    return safe_id(patient_id), safe_id(values.get("SeriesInstanceUID") or folder)


def _read_tags(content: bytes) -> dict[str, str]:
    """Return the tags that are not empty; no tags if the header cannot be parsed."""
    # Damaged headers raise many kinds of errors in pydicom, some on access to a value.
    try:
        dataset = pydicom.dcmread(
            BytesIO(content), stop_before_pixels=True, specific_tags=list(_TAGS), force=True
        )
        values = {tag: str(dataset.get(tag) or "").strip(" \0") for tag in _TAGS}
        directory = dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage
    except Exception:
        return {}
    return {tag: value for tag, value in values.items() if value} | (
        {"directory": "yes"} if directory else {}
    )


def safe_id(text: str) -> str:
    """Return `text` as a folder name, never empty, of at most 109 bytes.

    A changed text gets a checksum, so that different texts stay different.
    """
    safe = re.sub(r"[^\w.-]", "_", text).lstrip(".")
    name = safe.encode()[:_ID_BYTES].decode(errors="ignore") or "unnamed"
    if name == text:
        return name
    return f"{name}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
