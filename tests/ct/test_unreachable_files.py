"""Errors of the disk or of memory are told apart from damaged files: only the former may pass."""

import errno
import os
from pathlib import Path

import pytest

from src.core.errors import UserError
from src.ct.dicom_series import scan_series
from src.ct.series import SeriesError, UnreachableSeries
from src.ct.storage import LocalFile, LocalFolder, LocalTree, UnreachableFile, UnreachableTree, UnreadableFile


def fail_to_open(monkeypatch, number):
    def failing(self, *_, **__):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "open", failing)
    monkeypatch.setattr(os, "scandir", failing)


@pytest.mark.parametrize(
    ("number", "passes"),
    [
        (errno.EIO, True),
        (errno.ENOTCONN, True),
        (errno.ENOMEM, True),
        (errno.ENOENT, False),
        (errno.EACCES, False),
    ],
)
def test_an_unreachable_disk_raises_another_error_than_a_missing_file(tiny, monkeypatch, number, passes):
    folder = next((tiny.raw / "test_images").glob("*/*"))
    files = LocalFolder(folder).list()
    with monkeypatch.context() as patch:
        fail_to_open(patch, number)
        for work in (files[0].read, lambda: list(files[0].chunks()), LocalFolder(folder).list):
            with pytest.raises(UnreadableFile) as caught:
                work()
            assert isinstance(caught.value, UnreachableFile) == passes
        with pytest.raises(UserError) as caught:
            LocalTree(folder).list_folder("")
        assert isinstance(caught.value, UnreachableTree) == passes
        with pytest.raises(SeriesError, match="no usable file: file cannot be read") as caught:
            scan_series(files)
        assert isinstance(caught.value, UnreachableSeries) == passes
    assert len(scan_series([*files, LocalFile(folder / "gone.dcm")]).z_mm) == len(files)
