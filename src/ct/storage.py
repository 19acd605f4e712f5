"""Where bytes come from: files on disk, and what every store of files has in common."""

import errno
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from src.core.errors import UserError

CHUNK = 1 << 20
"""Bytes that are read at a time."""

_GZIP_MAGIC = b"\x1f\x8b"
_PASSING = {
    *(errno.EIO, errno.ENODEV, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN),
    *(errno.EHOSTUNREACH, errno.ECONNRESET, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
    *(errno.EAGAIN, errno.EINTR, errno.EBUSY),
}
"""What the system says of a disk or mount that is away for a moment, and of its own want of resources."""


class UnreadableFile(Exception):
    """A file whose bytes cannot be had. The message says why, in a few words."""


class UnreachableFile(UnreadableFile):
    """The file is not to blame but the disk, the network or the machine: another try may have its bytes."""


class UnreachableTree(UserError):
    """Folders that cannot be listed, by fault of the disk or the machine: another try may help."""


class StoredFile(Protocol):
    """A file to read, wherever it lies."""

    @property
    def name(self) -> str:
        """What tables call it: unique in its set, without the folders that all files of the set share."""

    def read(self, limit: int | None = None) -> bytes:
        """Its content, or the first `limit` bytes of it. Raises `UnreadableFile`."""

    def chunks(self) -> Iterator[bytes]:
        """Its content in pieces of at most 1 MB. Raises `UnreadableFile`."""


class FileSet(Protocol):
    """Files that belong together, listed when they are needed."""

    def list(self) -> tuple[StoredFile, ...]:
        """The files, sorted by name. Raises `UnreadableFile`."""


@dataclass(frozen=True)
class LocalFile:
    """A file on disk."""

    path: Path
    label: str = ""
    """Its name in tables, where that is not the last part of its path."""

    @property
    def name(self) -> str:
        return printable(self.label or self.path.name)

    def read(self, limit: int | None = None) -> bytes:
        try:
            with self.path.open("rb", buffering=0) as file:
                return file.read() if limit is None else file.read(limit)
        except OSError as error:
            raise unreadable("file", error) from error

    def chunks(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb", buffering=0) as file:
                while chunk := file.read(CHUNK):
                    yield chunk
        except OSError as error:
            raise unreadable("file", error) from error


@dataclass(frozen=True)
class FileList:
    """Files named one by one, in the order of their names."""

    files: tuple[StoredFile, ...]

    def list(self) -> tuple[StoredFile, ...]:
        return self.files


@dataclass(frozen=True)
class LocalFolder:
    """The files of a folder; its own folders are not entered."""

    path: Path

    def list(self) -> tuple[StoredFile, ...]:
        try:
            with os.scandir(self.path) as entries:
                names = sorted(
                    entry.name for entry in entries if not is_hidden(entry.name) and is_to_read(entry)
                )
        except OSError as error:
            raise unreadable("folder", error) from error
        return tuple(LocalFile(self.path / name) for name in names)


@dataclass(frozen=True)
class LocalFiles:
    """Files below a folder, a few dozen bytes each however many there are."""

    folder: Path
    names: str
    """Paths below the folder, sorted, with NUL between them."""

    def list(self) -> tuple[StoredFile, ...]:
        return tuple(LocalFile(self.folder / name, name) for name in self.names.split("\0") if name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a system's own: .DS_Store, ._1.dcm, and the __MACOSX of its archives."""
    return name.startswith(".") or name == "__MACOSX"


def is_to_read(entry: os.DirEntry) -> bool:
    """Whether an entry is a file, or a link to one or to nothing, which is reported where it is read.

    Pipes, sockets and devices are not: to open one may take for ever.
    """
    if not entry.is_symlink():
        return entry.is_file()
    return os.path.isfile(entry.path) or not os.path.exists(entry.path)


def printable(name: str) -> str:
    """A file's name as tables can hold it: bytes that are not UTF-8 become \\x.., all else stays."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


@contextmanager
def unpacked(file: StoredFile) -> Iterator[BinaryIO]:
    """Yield `file` open on disk and not compressed, for readers that map it into memory.

    What lies in an archive or is compressed with gzip is unpacked, into a temporary file that has no name: it
    vanishes with the process, however that ends. The folder is that of TMPDIR.

    Raises:
        UnreadableFile: it cannot be read, its compression is damaged, or there is no room to unpack it.
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
    """Unpack gzip, of several members too, with their check sums checked; zeros after the end are padding."""
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


def unreadable(what: str, error: OSError) -> UnreadableFile:
    """The error to raise for a file, a folder or an archive that the system does not give."""
    kind = UnreachableFile if is_passing(error) else UnreadableFile
    return kind(f"{what} cannot be read: {error.strerror or error}")


def is_passing(error: OSError) -> bool:
    """Whether the disk, the network or the machine is to blame for it rather than a file."""
    return error.errno in _PASSING
