"""Folders of files, on disk or in a zip archive, walked in the same way and to the same result."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from src.core.errors import UserError
from src.ct.storage import (
    FileSet,
    LocalFiles,
    LocalFolder,
    StoredFile,
    UnreachableTree,
    is_hidden,
    is_passing,
    is_to_read,
)
from src.ct.zip_archive import ZipTree


class FileTree(Protocol):
    """Folders and files below a root, named by their paths from it with "/" between; the root is ""."""

    path: Path
    """The folder or archive itself."""

    def list_folder(self, folder: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the folders, and of the files, in a folder, sorted, without hidden ones.

        Raises:
            UserError: it cannot be read; `UnreachableTree` where another try may help.
        """

    def folder(self, folder: str) -> FileSet:
        """The files in a folder. Nothing is listed yet."""

    def files(self, folder: str, names: Sequence[str]) -> FileSet:
        """The files with these sorted paths below a folder."""


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
            kind = UnreachableTree if is_passing(error) else UserError
            raise kind(f"cannot read the folder {self.path / folder}: {error.strerror}") from None
        return tuple(sorted(folders)), tuple(sorted(files))

    def folder(self, folder: str) -> FileSet:
        return LocalFolder(self.path / folder)

    def files(self, folder: str, names: Sequence[str]) -> FileSet:
        return LocalFiles(self.path / folder, "\0".join(names))


@dataclass(frozen=True)
class SingleFile(LocalTree):
    """A folder on disk of which one file counts."""

    name: str

    def list_folder(self, folder: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return (), (self.name,)


def _kind(entry: os.DirEntry) -> str | None:
    """What an entry is: a file, a folder, or neither. One that cannot be looked at is told of as a file."""
    try:
        if is_to_read(entry):
            return "file"
        is_folder = entry.is_dir() and not (entry.is_symlink() and _leads_back(Path(entry.path)))
        return "folder" if is_folder else None
    except OSError:
        return "file"


def _leads_back(link: Path) -> bool:
    """Whether a link leads to a folder on its own path, or above one, round which a walk would never end."""
    target = link.resolve()
    return any(folder.resolve().is_relative_to(target) for folder in link.absolute().parents)


def open_tree(path: Path, option: str) -> FileTree:
    """The tree at `path`: a folder, a zip archive, or a single file.

    Args:
        option: that named the path, for the error.

    Raises:
        UserError: nothing there, or not a readable archive.
    """
    if path.is_dir():
        return LocalTree(path)
    if not path.is_file():
        raise UserError(f"no folder or file {path} ({option})")
    if path.name.lower().endswith(".zip"):
        return ZipTree(path)
    return SingleFile(path.parent, path.name)


def walk(tree: FileTree, folder: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every folder with the names of its files, from `folder` on, sorted."""
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        folders, files = tree.list_folder(folder)
        yield folder, files
        waiting.extend(join(folder, name) for name in reversed(folders))


def join(folder: str, name: str) -> str:
    """A path below the root of a tree."""
    return f"{folder}/{name}" if folder else name


def single(tree: FileTree, folder: str, name: str) -> StoredFile:
    """One file of a tree."""
    return tree.files(folder, (name,)).list()[0]
