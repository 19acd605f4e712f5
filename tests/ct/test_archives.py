"""Zip archives read like the folders that they were made of, and damage stays in one member."""

import gzip
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from src.core.errors import UserError
from src.ct.archives import ZipTree, unpacked
from src.ct.nifti import open_nifti
from src.ct.storage import LocalFile, LocalTree, UnreadableFile, walk
from tests.helpers.folders import write_files
from tests.helpers.nifti_files import lps_affine, on_plane, patient, save

NOISE = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
CONTENTS = {
    "b/2.dcm": NOISE,
    "b/10.DCM": b"ten",
    "b/note.txt": b"",
    "b/deep/er/zeros.bin": bytes(3 << 20),
    "a.dcm": b"root",
}


def write_zip(path, contents=CONTENTS, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def both_trees(folder, method=zipfile.ZIP_STORED, contents=CONTENTS):
    archive = write_zip(folder / "x.zip", contents, method)
    return LocalTree(write_files(folder / "x", contents)), ZipTree(archive)


def read_all(tree):
    return {
        f"{folder}/{file.name}": file.read()
        for folder, _ in walk(tree)
        for file in tree.folder(folder).list()
    }


METHODS = pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])


@METHODS
def test_zip_tree_equals_local_tree(tmp_path, method):
    local, zipped = both_trees(tmp_path, method)
    assert list(walk(zipped)) == list(walk(local))
    assert list(walk(zipped, "b/deep")) == [("b/deep", ()), ("b/deep/er", ("zeros.bin",))]
    assert read_all(zipped) == read_all(local) and len(read_all(local)) == len(CONTENTS)
    for tree in (local, zipped):
        assert [file.name for file in tree.folder("b").list()] == ["10.DCM", "2.dcm", "note.txt"]
        chosen = tree.files("b", ["2.dcm", "deep/er/zeros.bin"]).list()
        assert [file.name for file in chosen] == ["2.dcm", "deep/er/zeros.bin"]
        assert chosen[1].read() == CONTENTS["b/deep/er/zeros.bin"]
        assert tree.folder("b/deep").list() == ()


@METHODS
@pytest.mark.parametrize("limit", [0, 1, 1000, 299_999, 300_000, 400_000])
def test_read_with_a_limit(tmp_path, method, limit):
    for tree in both_trees(tmp_path, method):
        assert tree.files("b", ["2.dcm"]).list()[0].read(limit) == NOISE[:limit]


@METHODS
def test_chunks_are_small_and_complete(tmp_path, method):
    for tree in both_trees(tmp_path, method):
        pieces = list(tree.files("b/deep/er", ["zeros.bin"]).list()[0].chunks())
        assert max(map(len, pieces)) <= 1 << 20
        assert b"".join(pieces) == CONTENTS["b/deep/er/zeros.bin"]


@pytest.mark.parametrize("size", [258, 1 << 20, *range((1 << 20) + 1, (1 << 20) + 260, 20), 3_000_000])
def test_read_of_highly_compressible_members(tmp_path, size):
    archive = write_zip(tmp_path / "x.zip", {"zeros": bytes(size)}, zipfile.ZIP_DEFLATED)
    member = ZipTree(archive).folder("").list()[0]
    assert member.read() == bytes(size)
    assert member.read(size - 1) == bytes(size - 1)


@METHODS
@pytest.mark.parametrize("place", [1, 1000], ids=["header", "content"])
def test_read_of_a_damaged_member(tmp_path, method, place):
    archive = write_zip(tmp_path / "x.zip", {"1.dcm": NOISE, "2.dcm": NOISE}, method)
    content = bytearray(archive.read_bytes())
    content[place] ^= 0x55
    archive.write_bytes(content)
    first, second = ZipTree(archive).folder("").list()
    for read in (first.read, lambda: list(first.chunks())):
        with pytest.raises(UnreadableFile, match="damaged"):
            read()
    assert second.read() == NOISE


def test_read_of_a_member_of_a_deleted_archive(tmp_path):
    archive = write_zip(tmp_path / "x.zip", {"1.dcm": b"one"})
    member = ZipTree(archive).folder("").list()[0]
    archive.unlink()
    with pytest.raises(UnreadableFile, match="No such file"):
        member.read()


def test_zip_tree_beyond_4_gb(tmp_path):
    """A sparse archive: the second member begins after 5 GB of which the disk holds next to nothing."""
    path, gap = tmp_path / "x.zip", 5 << 30
    write_zip(path, {"1.dcm": b"one"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.fp.seek(gap)
        archive.start_dir = gap
        archive.writestr("2.dcm", NOISE)
        archive._didModify = True
    assert path.stat().st_size > gap > path.stat().st_blocks * 512
    members = ZipTree(path).folder("").list()
    assert [member.read() for member in members] == [b"one", NOISE]


def test_zip_tree_takes_the_later_of_two_members_with_one_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("1.dcm", b"old")
        archive.writestr("1.dcm", b"new")
    assert [file.read() for file in ZipTree(tmp_path / "x.zip").folder("").list()] == [b"new"]


def test_trees_leave_out_hidden_files(tmp_path):
    contents = {
        "a/1.dcm": b"one",
        "a/._1.dcm": b"",
        ".git/2.dcm": b"",
        "a/.x/3.dcm": b"",
        "__MACOSX/a/._1.dcm": b"",
    }
    for tree in both_trees(tmp_path, contents=contents):
        assert list(walk(tree)) == [("", ()), ("a", ("1.dcm",))]
        assert [file.name for file in tree.folder("a").list()] == ["1.dcm"]


def write_names(path, names, system=3):
    """Write members with exactly these names; `system` made them: 0 is Windows, 3 Unix."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            member = zipfile.ZipInfo("x")
            member.filename, member.create_system = name, system
            archive.writestr(member, name.encode())
    return ZipTree(path)


def test_zip_tree_reads_backslashes_as_slashes(tmp_path):
    names = ["a\\b\\1.dcm", ".\\c\\2.dcm", "\\d\\3.dcm", "C:\\e\\4.dcm", "f\\", "..\\5.dcm", "a\\.x\\6.dcm"]
    tree = write_names(tmp_path / "x.zip", names)
    expected = {
        "": (),
        "a": (),
        "a/b": ("1.dcm",),
        "c": ("2.dcm",),
        "d": ("3.dcm",),
        "e": ("4.dcm",),
        "f": (),
    }
    assert dict(walk(tree)) == expected
    assert tree.folder("a/b").list()[0].read() == names[0].encode()


def test_zip_tree_keeps_backslashes_of_names_in_an_archive_with_slashes(tmp_path):
    tree = write_names(tmp_path / "1.zip", ["a\\b.dcm", "c/d.dcm"])
    assert dict(walk(tree)) == {"": ("a\\b.dcm",), "c": ("d.dcm",)}
    tree = write_names(tmp_path / "2.zip", ["a\\b.dcm", "c/d.dcm"], system=0)
    assert dict(walk(tree)) == {"": (), "a": ("b.dcm",), "c": ("d.dcm",)}


def test_zip_tree_has_empty_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.mkdir("a/b")
        archive.writestr("./c/1.dcm", b"one")
    tree = ZipTree(tmp_path / "x.zip")
    assert [folder for folder, _ in walk(tree)] == ["", "a", "a/b", "c"]
    assert tree.folder("a/b").list() == ()


def test_zip_tree_refuses_what_it_cannot_read(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"1.dcm": b"one"})
    whole = path.read_bytes()
    encrypted = bytearray(whole)
    encrypted[whole.index(b"PK\x01\x02") + 8] |= 1
    write_zip(path, {"1.dcm": b"one"}, zipfile.ZIP_BZIP2)
    for content, reason in {
        bytes(encrypted): "1.dcm is encrypted; unpack",
        path.read_bytes(): "1.dcm is compressed in a way",
        b"": "not a readable zip archive",
        b"no archive": "not a readable zip archive",
        whole[:-40]: "not a readable zip archive",
    }.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=reason):
            ZipTree(path)


@pytest.mark.parametrize("number", ["file_size", "compress_size", "header_offset"])
def test_zip_tree_refuses_numbers_beyond_any_file(tmp_path, number):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.dcm", b"one")
        setattr(archive.filelist[0], number, 1 << 63)
    with pytest.raises(UserError, match=r"not a readable zip archive: .* has impossible sizes"):
        ZipTree(path)


def test_unpacked_without_room_names_the_folder(tmp_path, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    archive = write_zip(tmp_path / "x.zip", {"1.nii": NOISE})
    full = Path("/dev/full")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full.open("wb"))
    with (
        pytest.raises(UnreadableFile, match=r"unpacked to .*No space left"),
        unpacked(ZipTree(archive).folder("").list()[0]),
    ):
        pass


def test_zip_files_take_few_bytes_per_member(tmp_path):
    path = write_zip(tmp_path / "x.zip", {f"s/{index}.dcm": b"" for index in range(2000)})
    files = ZipTree(path).folder("s")
    assert len(files.list()) == 2000
    assert files.numbers.nbytes + len(files.names) < 60 * 2000


def test_chunks_of_a_member_with_a_wrong_size(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"1.dcm": bytes(5000)}, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 100)
    path.write_bytes(content)
    pieces = []
    with pytest.raises(UnreadableFile, match="damaged"):
        pieces.extend(ZipTree(path).folder("").list()[0].chunks())
    assert sum(map(len, pieces)) <= 100  # nor does a small member fill the memory


def test_unpacked_recognises_gzip_by_content(tmp_path):
    whole = save(tmp_path / "1.nii", patient(lps_affine())).path.read_bytes()
    (tmp_path / "2.nii").write_bytes(gzip.compress(whole))
    (tmp_path / "3.nii.gz").write_bytes(whole)
    for name in ("2.nii", "3.nii.gz"):
        with open_nifti(LocalFile(tmp_path / name)) as series:
            np.testing.assert_array_equal(series.read(3), on_plane(series.plane(3), series.shape))


def test_unpacked_leaves_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_nifti(save(tmp_path / "1.nii.gz", patient(lps_affine()))) as series:
        assert series.read(0) is not None
        assert [path.name for path in tmp_path.iterdir()] == ["1.nii.gz"]  # not even while it is open
