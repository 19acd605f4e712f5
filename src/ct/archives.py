"""Compressed files: zip archives read in place, and gzip unpacked to a temporary file."""

import re
import tempfile
import zipfile
import zlib
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from src.core.errors import UserError
from src.ct.storage import (
    CHUNK,
    FileSet,
    LocalFile,
    StoredFile,
    UnreachableTree,
    UnreadableFile,
    is_hidden,
    is_temporary,
    unreadable,
)

_LOCAL_HEADER = (
    b"PK\x03\x04"  # local file header: 30 bytes; the last four are the lengths of name and extra field
)
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 0x1
_WINDOWS = 0  # system on which a member was made; there no name contains a backslash
_GZIP_MAGIC = b"\x1f\x8b"
_NUMBERS = 5  # per member: offset, stored size, size, method, CRC


@dataclass(frozen=True)
class ZipMember:
    """A member of a zip archive, located by its offset: the archive's directory is read once per run."""

    archive: Path
    name: str
    offset: int
    stored_size: int
    size: int
    method: int
    crc: int

    def read(self, limit: int | None = None) -> bytes:
        if limit is None or limit >= self.size:
            return b"".join(self.chunks())
        parts, left = [], limit
        for piece in self._pieces(step=limit):
            parts.append(piece[:left])
            left -= len(parts[-1])
            if left == 0:
                break
        return b"".join(parts)

    def chunks(self) -> Iterator[bytes]:
        """Yield the content in pieces of up to 1 MB. Raises `UnreadableFile`, at the end for a wrong CRC."""
        crc, length = 0, 0
        for piece in self._pieces(CHUNK):
            crc, length = zlib.crc32(piece, crc), length + len(piece)
            if length > self.size:
                break
            yield piece
        if length != self.size or crc != self.crc:
            raise UnreadableFile("member of the zip archive is damaged")

    def _pieces(self, step: int) -> Iterator[bytes]:
        try:
            with self.archive.open("rb", buffering=0) as archive:
                archive.seek(self.offset)
                header = archive.read(_LOCAL_HEADER_BYTES)
                if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(_LOCAL_HEADER):
                    raise UnreadableFile("member of the zip archive is damaged")
                archive.seek(sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28)), 1)
                stored = self._stored(archive, step)
                yield from stored if self.method == zipfile.ZIP_STORED else _inflate(stored, step)
        except OSError as error:
            raise unreadable("zip archive", error) from error
        except zlib.error as error:
            raise UnreadableFile("member of the zip archive is damaged") from error

    def _stored(self, archive: BinaryIO, step: int) -> Iterator[bytes]:
        left = self.stored_size
        while left > 0 and (stored := archive.read(min(left, step))):
            left -= len(stored)
            yield stored


def _inflate(chunks: Iterator[bytes], step: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    for stored in chunks:
        while stored and not inflater.eof:
            yield inflater.decompress(stored, step)
            stored = inflater.unconsumed_tail
    yield inflater.flush()  # output that remains after all of the input is consumed


@dataclass(frozen=True, eq=False)
class ZipFiles:
    """Members below one folder of an archive, in a few dozen bytes per member."""

    archive: Path
    names: str
    """Paths below the folder, sorted, with NUL between them."""
    numbers: np.ndarray
    """(files, 5) int64: offset, stored size, size, method and CRC of each member."""

    def list(self) -> tuple[StoredFile, ...]:
        names = self.names.split("\0") if self.names else []
        return tuple(
            ZipMember(self.archive, name, *row)
            for name, row in zip(names, self.numbers.tolist(), strict=True)
        )


class ZipTree:
    """Folders and files of a zip archive: a `FileTree`. The root is ""."""

    def __init__(self, path: Path):
        """Read the archive's directory, which is briefly held in memory as a whole.

        Of two members with the same name the later one counts, as after unpacking. Programs of Windows write
        a backslash as separator: it is read as a slash.

        Raises:
            UserError: not a zip archive, damaged, or with members that cannot be read in place;
                `UnreachableTree` where a retry may help.
        """
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.filelist
        except (OSError, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            kind = UnreachableTree if isinstance(error, OSError) and is_temporary(error) else UserError
            raise kind(f"{path} is not a readable zip archive: {error}") from None
        del archive  # it holds a second list of all members
        self._subfolders: dict[str, set[str]] = defaultdict(set, {"": set()})
        self._names: dict[str, dict[str, int]] = defaultdict(dict)
        self._numbers: dict[str, array] = defaultdict(lambda: array("q"))
        self._only_backslashes = not any("/" in member.filename for member in members)
        members.reverse()
        while members:  # free them one by one: a million members take a gigabyte
            self._add(members.pop())

    def _add(self, member: zipfile.ZipInfo) -> None:
        path = member.filename
        if self._only_backslashes or member.create_system == _WINDOWS:
            path = re.sub("^[A-Za-z]:/", "", path.replace("\\", "/"))
        folder, _, name = path.removeprefix("./").lstrip("/").rpartition("/")
        if folder not in self._subfolders:
            if any(map(is_hidden, folder.split("/"))):
                return
            self._add_folder(folder)
        if not name or is_hidden(name):
            return
        readable = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if not readable or member.flag_bits & _ENCRYPTED:
            how = "compressed in a way that cannot be read in place" if not readable else "encrypted"
            raise UserError(
                f"{self.path}: {member.filename} is {how}; unpack the archive and name the folder"
            )
        numbers = self._numbers[folder]
        self._names[folder][name] = len(numbers) // _NUMBERS
        sizes = (member.header_offset, member.compress_size, member.file_size)
        try:
            numbers.extend((*sizes, member.compress_type, member.CRC))
        except OverflowError:
            raise UserError(
                f"{self.path} is not a readable zip archive: {member.filename} has impossible sizes"
            ) from None

    def _add_folder(self, folder: str) -> None:
        self._subfolders[folder] = set()
        for inner in (folder, *map(str, PurePosixPath(folder).parents)):
            outer, _, name = inner.rpartition("/")
            if name != ".":
                self._subfolders[outer].add(name)

    def list_folder(self, folder: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return tuple(sorted(self._subfolders.get(folder, ()))), tuple(sorted(self._names.get(folder, ())))

    def folder(self, folder: str) -> FileSet:
        return self.files(folder, sorted(self._names.get(folder, ())))

    def files(self, folder: str, names: Sequence[str]) -> ZipFiles:
        rows = [self._row(f"{folder}/{name}" if folder else name) for name in names]
        numbers = np.array(rows, dtype=np.int64).reshape(len(rows), _NUMBERS)
        return ZipFiles(self.path, "\0".join(names), numbers)

    def _row(self, path: str) -> array:
        folder, _, name = path.rpartition("/")
        first = self._names[folder][name] * _NUMBERS
        return self._numbers[folder][first : first + _NUMBERS]


@contextmanager
def unpacked(file: StoredFile) -> Iterator[BinaryIO]:
    """Yield `file` open on disk and uncompressed, ready for memory mapping.

    A member of an archive, or a gzip file, is unpacked to an unnamed temporary file in TMPDIR, which the
    system removes when the process ends, even after a crash.

    Raises:
        UnreadableFile: the file cannot be read, its compression is damaged, or there is no room to unpack it.
    """
    compressed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    in_place = isinstance(file, LocalFile) and not compressed
    with _open(file.path) if in_place else tempfile.TemporaryFile(prefix="unpacked-") as stream:
        if not in_place:
            _unpack(_gunzip(file.chunks()) if compressed else file.chunks(), stream)
        yield stream


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise unreadable("file", error) from error


def _unpack(chunks: Iterator[bytes], stream: BinaryIO) -> None:
    try:
        for chunk in chunks:
            stream.write(chunk)
        stream.flush()
    except OSError as error:
        folder = tempfile.gettempdir()
        raise UnreadableFile(f"cannot be unpacked to {folder}: {error.strerror or error}") from error
    stream.seek(0)


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack gzip, also of several members, and check the checksums; zeros after the end are padding."""
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
    begun = False
    try:
        for stored in chunks:
            while stored:
                if inflater.eof:
                    stored = stored.lstrip(b"\0")
                    if not stored:
                        break
                    inflater, begun = zlib.decompressobj(zlib.MAX_WBITS | 16), False
                begun = True
                yield inflater.decompress(stored, CHUNK)
                stored = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
        if not inflater.eof:
            yield inflater.flush()
    except zlib.error as error:
        raise UnreadableFile("gzip content is damaged") from error
    if begun and not inflater.eof:
        raise UnreadableFile("gzip content is cut short")
