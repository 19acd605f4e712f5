"""Twenty ways to damage the files of a patient."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pydicom

from tests.helpers.dicom_files import set_tags

CRASH, HANG = "crash", "hang"
"""Done by the reader, see `dying_readers.Misbehave`: no file crashes or hangs decoders on every machine."""


def _each_file(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def break_patient(patient: Path) -> None:
        for path in sorted(patient.glob("*/*.dcm")):
            change(path)

    return break_patient


def _each_series(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def break_patient(patient: Path) -> None:
        for series in sorted(patient.iterdir()):
            change(series)

    return break_patient


def _each_tag(**tags: object) -> Callable[[Path], None]:
    return _each_file(lambda path: set_tags(path, **tags))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _keep_one(series: Path) -> None:
    for path in sorted(series.iterdir())[1:]:
        path.unlink()


def _link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("gone"))


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _unknown_syntax(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = "1.2.3.4"
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=True)


def _nothing(patient: Path) -> None:
    """The files stay as they are."""


BROKEN: dict[str, Callable[[Path], None]] = {
    "patient is missing": shutil.rmtree,
    "patient's folder is empty": _empty,
    "series are empty": _each_series(_empty),
    "files are empty": _each_file(lambda path: path.write_bytes(b"")),
    "files are cut": _each_file(lambda path: path.write_bytes(path.read_bytes()[:600])),
    "files are text": _each_file(lambda path: path.write_text("no DICOM\n" * 100)),
    "no pixels": _each_tag(PixelData=None),
    "one slice": _each_series(_keep_one),
    "not CT": _each_tag(Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4"),
    CRASH: _nothing,
    HANG: _nothing,
    "links to nothing": _each_file(_link_to_nothing),
    "folders instead of files": _each_file(_make_folder),
    "pipes instead of files": _each_file(_make_pipe),
    "all at one position": _each_tag(ImagePositionPatient=[0, 0, 0]),
    "no position": _each_tag(ImagePositionPatient=None),
    "not axial": _each_tag(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
    "unknown transfer syntax": _each_file(_unknown_syntax),
    "absurd size": _each_tag(Rows=65535, Columns=65535),
    "slope is not a number": _each_tag(RescaleSlope="nan"),
}
