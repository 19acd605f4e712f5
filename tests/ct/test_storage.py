"""Files and folders on disk are listed and read; links never lead round in a circle."""

import os

import pytest

from src.ct.storage import LocalFile, LocalFolder, LocalTree, UnreadableFile, walk


def write_folder(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_local_folder_skips_folders(tmp_path):
    (tmp_path / "1.dcm").mkdir()
    assert LocalFolder(tmp_path).list() == ()


def test_local_files_report_why_they_cannot_be_read(tmp_path):
    with pytest.raises(UnreadableFile, match="No such file"):
        LocalFile(tmp_path / "none").read()
    with pytest.raises(UnreadableFile, match="No such file"):
        list(LocalFile(tmp_path / "none").chunks())
    with pytest.raises(UnreadableFile, match="folder cannot be read"):
        LocalFolder(tmp_path / "none").list()


def test_walk_follows_links_but_no_cycles(tmp_path):
    write_folder(tmp_path / "data", {"a/1.dcm": b"one"})
    os.symlink(tmp_path / "data", tmp_path / "data" / "a" / "up")
    os.symlink(tmp_path / "data" / "a", tmp_path / "data" / "a" / "self")
    write_folder(tmp_path / "elsewhere", {"2.dcm": b"two"})
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "b")
    assert list(walk(LocalTree(tmp_path / "data"))) == [("", ()), ("a", ("1.dcm",)), ("b", ("2.dcm",))]


def test_walk_of_folders_that_link_to_each_other(tmp_path):
    write_folder(tmp_path, {"a/1.dcm": b"one", "b/2.dcm": b"two"})
    os.symlink(tmp_path / "a", tmp_path / "b/link")
    os.symlink(tmp_path / "b", tmp_path / "a/link")
    os.symlink("itself", tmp_path / "itself")
    assert [folder for folder, _ in walk(LocalTree(tmp_path))] == ["", "a", "a/link", "b", "b/link"]


def test_local_tree_lists_files_only(tmp_path):
    write_folder(tmp_path, {"1.dcm": b"one"})
    os.mkfifo(tmp_path / "pipe")
    for name, target in (("2.dcm", "1.dcm"), ("lost", "nowhere"), ("to_pipe", "pipe")):
        os.symlink(target, tmp_path / name)
    expected = ["1.dcm", "2.dcm", "lost"]  # a broken link is reported where it is read
    assert list(walk(LocalTree(tmp_path))) == [("", tuple(expected))]
    assert [file.name for file in LocalFolder(tmp_path).list()] == expected


def test_printable_of_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9.dcm")
    write_folder(tmp_path, {name: b"one", "Zo\u00eb.dcm": b"two"})
    files = LocalFolder(tmp_path).list() + LocalTree(tmp_path).files("", [name]).list()
    read = {file.name: file.read() for file in files}
    assert read == {"caf\\xe9.dcm": b"one", "Zo\u00eb.dcm": b"two"}
