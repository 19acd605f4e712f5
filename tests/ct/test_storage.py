"""Files and folders on disk are listed and read; links never lead round in a circle."""

import errno
import os
from pathlib import Path

import pytest

from src.core.errors import UserError
from src.ct.dicom_series import scan_series
from src.ct.series import SeriesError, UnreachableSeries
from src.ct.storage import (
    LocalFile,
    LocalFolder,
    LocalTree,
    UnreachableFile,
    UnreachableTree,
    UnreadableFile,
    walk,
)
from tests.helpers.dicom_files import write_series
from tests.helpers.folders import write_files


def test_local_files_report_why_they_cannot_be_read(tmp_path):
    with pytest.raises(UnreadableFile, match="No such file"):
        LocalFile(tmp_path / "none").read()
    with pytest.raises(UnreadableFile, match="No such file"):
        list(LocalFile(tmp_path / "none").chunks())
    with pytest.raises(UnreadableFile, match="folder cannot be read"):
        LocalFolder(tmp_path / "none").list()


def test_walk_follows_links_but_no_cycles(tmp_path):
    write_files(tmp_path / "data", {"a/1.dcm": b"one"})
    os.symlink(tmp_path / "data", tmp_path / "data" / "a" / "up")
    os.symlink(tmp_path / "data" / "a", tmp_path / "data" / "a" / "self")
    write_files(tmp_path / "elsewhere", {"2.dcm": b"two"})
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "b")
    assert list(walk(LocalTree(tmp_path / "data"))) == [("", ()), ("a", ("1.dcm",)), ("b", ("2.dcm",))]


def test_walk_of_folders_that_link_to_each_other(tmp_path):
    write_files(tmp_path, {"a/1.dcm": b"one", "b/2.dcm": b"two"})
    os.symlink(tmp_path / "a", tmp_path / "b/link")
    os.symlink(tmp_path / "b", tmp_path / "a/link")
    os.symlink("itself", tmp_path / "itself")
    assert [folder for folder, _ in walk(LocalTree(tmp_path))] == ["", "a", "a/link", "b", "b/link"]


def test_local_tree_lists_files_only(tmp_path):
    write_files(tmp_path, {"1.dcm": b"one"})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder.dcm").mkdir()
    for name, target in (("2.dcm", "1.dcm"), ("lost", "nowhere"), ("to_pipe", "pipe")):
        os.symlink(target, tmp_path / name)
    expected = ["1.dcm", "2.dcm", "lost"]  # a broken link is reported where it is read
    assert list(walk(LocalTree(tmp_path))) == [("", tuple(expected)), ("folder.dcm", ())]
    assert [file.name for file in LocalFolder(tmp_path).list()] == expected


def test_printable_of_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9.dcm")
    write_files(tmp_path, {name: b"one", "Zo\u00eb.dcm": b"two"})
    files = LocalFolder(tmp_path).list() + LocalTree(tmp_path).files("", [name]).list()
    read = {file.name: file.read() for file in files}
    assert read == {"caf\\xe9.dcm": b"one", "Zo\u00eb.dcm": b"two"}


def fail_to_open(monkeypatch, number):
    def failing(self, *_, **__):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "open", failing)
    monkeypatch.setattr(os, "scandir", failing)


@pytest.mark.parametrize(
    ("number", "passes"),
    [(errno.EIO, True), (errno.ENOTCONN, True), (errno.ENOMEM, True), (errno.ENOENT, False)],
)
def test_an_unreachable_disk_raises_unreachable_errors(tmp_path, monkeypatch, number, passes):
    folder = write_series(tmp_path / "s", n_slices=3)
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
