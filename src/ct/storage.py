"""Files and folders on disk, with the interface that files in archives share."""

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from src.core.errors import UserError

CHUNK = 1 << 20
"""Bytes read at a time."""

_TEMPORARY = {
    *(errno.EIO, errno.ENODEV, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN),
    *(errno.EHOSTUNREACH, errno.ECONNRESET, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
    *(errno.EAGAIN, errno.EINTR, errno.EBUSY),
}
"""Errors of a disk or mount that is temporarily unavailable, and of missing memory or descriptors."""


class UnreadableFile(Exception):
    """A file that cannot be read. The message is a short reason."""


class UnreachableFile(UnreadableFile):
    """A file that cannot be read now because of the disk, the network or the machine; a retry may help."""


class UnreachableTree(UserError):
    """Folders that cannot be listed now because of the disk or the machine; a retry may help."""


class StoredFile(Protocol):
    """A file to read: on disk, in an archive, or a frame of another file."""

    @property
    def name(self) -> str:
        """Name in tables: unique in its set, without the folders that all files of the set share."""

    def read(self, limit: int | None = None) -> bytes:
        """Read the content, or its first `limit` bytes. Raises `UnreadableFile`."""

    def chunks(self) -> Iterator[bytes]:
        """Yield the content in pieces of at most 1 MB. Raises `UnreadableFile`."""


class FileSet(Protocol):
    """Files that belong together, listed on demand."""

    def list(self) -> tuple[StoredFile, ...]:
        """List the files, sorted by name. Raises `UnreadableFile`."""


class FileTree(Protocol):
    """Folders and files below a root, named by relative paths with "/" as separator; the root is ""."""

    path: Path
    """The folder or archive itself."""

    def list_folder(self, folder: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the sorted names of the folders and of the files in a folder, without hidden ones.

        Raises:
            UserError: the folder cannot be read; `UnreachableTree` where a retry may help.
        """

    def folder(self, folder: str) -> FileSet:
        """Return the files of a folder. Nothing is listed yet."""

    def files(self, folder: str, names: Sequence[str]) -> FileSet:
        """Return the files with these sorted paths below a folder."""


@dataclass(frozen=True)
class LocalFile:
    """A file on disk."""

    path: Path
    label: str = ""
    """Name in tables, if it differs from the last part of the path."""

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
    """Files given one by one, in the order of their names."""

    files: tuple[StoredFile, ...]

    def list(self) -> tuple[StoredFile, ...]:
        return self.files


@dataclass(frozen=True)
class LocalFolder:
    """Files of a folder without its subfolders."""

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
    """Files below a folder, in a few dozen bytes per file."""

    folder: Path
    names: str
    """Paths below the folder, sorted, with NUL between them."""

    def list(self) -> tuple[StoredFile, ...]:
        return tuple(LocalFile(self.folder / name, name) for name in self.names.split("\0") if name)


@dataclass(frozen=True)
class LocalTree:
    """A folder on disk."""

    path: Path

    def list_folder(self, folder: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        folders, files = [], []
        try:
            with os.scandir(self.path / folder) as entries:
                for entry in entries:
                    kind = None if is_hidden(entry.name) else _kind(entry)
                    if kind is not None:
                        (files if kind == "file" else folders).append(entry.name)
        except OSError as error:
            kind = UnreachableTree if is_temporary(error) else UserError
            raise kind(f"cannot read the folder {self.path / folder}: {error.strerror}") from None
        return tuple(sorted(folders)), tuple(sorted(files))

    def folder(self, folder: str) -> FileSet:
        return LocalFolder(self.path / folder)

    def files(self, folder: str, names: Sequence[str]) -> FileSet:
        return LocalFiles(self.path / folder, "\0".join(names))


@dataclass(frozen=True)
class SingleFile(LocalTree):
    """A folder on disk of which only one file is visible."""

    name: str

    def list_folder(self, folder: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return (), (self.name,)


def _kind(entry: os.DirEntry) -> str | None:
    """Return the kind of an entry: file, folder or None. Unreadable entries are files, to be reported."""
    try:
        if is_to_read(entry):
            return "file"
        is_folder = entry.is_dir() and not (entry.is_symlink() and _leads_back(Path(entry.path)))
        return "folder" if is_folder else None
    except OSError:
        return "file"


def _leads_back(link: Path) -> bool:
    """Return whether a link leads to a folder above it, which would make a walk endless."""
    target = link.resolve()
    return any(folder.resolve().is_relative_to(target) for folder in link.absolute().parents)


def walk(tree: FileTree, folder: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every folder from `folder` on with the names of its files, sorted."""
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        folders, files = tree.list_folder(folder)
        yield folder, files
        waiting.extend(join(folder, name) for name in reversed(folders))


def join(folder: str, name: str) -> str:
    """Join a folder and a name to a path below the root of a tree."""
    return f"{folder}/{name}" if folder else name


def single(tree: FileTree, folder: str, name: str) -> StoredFile:
    """Return one file of a tree."""
    return tree.files(folder, (name,)).list()[0]


def is_hidden(name: str) -> bool:
    """Return whether a name is a system file or folder: .DS_Store, ._1.dcm, or the __MACOSX of archives."""
    return name.startswith(".") or name == "__MACOSX"


def is_to_read(entry: os.DirEntry) -> bool:
    """Return whether an entry is a file or a link to one. Broken links count: reading reports them.

    Pipes, sockets and devices do not count: opening one may block forever.
    """
    if not entry.is_symlink():
        return entry.is_file()
    return os.path.isfile(entry.path) or not os.path.exists(entry.path)


def printable(name: str) -> str:
    """Return a file name that tables can hold: bytes that are not UTF-8 become \\x..; all else stays."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def unreadable(what: str, error: OSError) -> UnreadableFile:
    """Return the error to raise for a file, folder or archive that the system cannot read."""
    kind = UnreachableFile if is_temporary(error) else UnreadableFile
    return kind(f"{what} cannot be read: {error.strerror or error}")


def is_temporary(error: OSError) -> bool:
    """Return whether an error is caused by the disk, the network or the machine, not by the file."""
    return error.errno in _TEMPORARY
