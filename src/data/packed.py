"""Arrays of prepared series in files on a fast disk, for training that is limited by decoding PNG.

    <cache>/<digest>/<patient_id>/<series_id>.<version>.npy     uint8, one row per slice

A series is packed when it is first read. Files appear whole, by a rename, so that processes, ranks and runs
may share a cache, and a killed run leaves what it has packed. The digest depends on the data set and on what
is packed of it, the version on when the series was prepared: a series that is prepared again is packed again.
"""

import hashlib
import io
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from src.core.errors import UserError
from src.core.files import atomic_path
from src.data.prepared import PreparedDataset, image_folder, read_windows

_LONGEST_WRITE_S = 3600
"""Age from which an unfinished file is taken for that of a killed process."""


class SeriesCache:
    """One array per series of a prepared data set.

    Args:
        cache: folder that several data sets and runs may share.
        dataset: folder of the prepared data set.
        content: what is packed of its slices: plain values, in a fixed order.
    """

    def __init__(self, cache: Path, dataset: Path, content: Sequence[Any]) -> None:
        digest = hashlib.sha256((dataset / "dataset.json").read_bytes())
        digest.update(repr((str(dataset.absolute()), *content)).encode())
        self.folder = cache / digest.hexdigest()[:16]

    def open(
        self, source: Path, shape: tuple[int, ...], make: Callable[[], Iterable[np.ndarray]]
    ) -> np.ndarray:
        """Open the array of a series, uint8 of `shape`, read-only and mapped into memory.

        Args:
            source: folder of the prepared slices.
            make: returns the rows of the array; called if the series must be packed.

        Raises:
            UserError: the series must be packed, and a slice is missing or damaged, or the disk is full.
        """
        path = self._path(source)
        packed = _map(path, shape)
        if packed is None:
            self._write(path, shape, make())
            packed = _map(path, shape)
        if packed is None:
            raise UserError(f"cannot read the cache {path}: delete it, or run without --cache")
        return packed

    def _path(self, source: Path) -> Path:
        try:
            version = source.stat().st_mtime_ns  # preparation writes a new folder
        except OSError:
            raise UserError(f"no folder {source}; prepare the data set again") from None
        return self.folder / source.parent.name / f"{source.name}.{version:016x}.npy"

    def _write(self, path: Path, shape: tuple[int, ...], rows: Iterable[np.ndarray]) -> None:
        try:
            _remove_others(path)
            # not through a memory map: on a full disk it would kill the process
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                file.write(_header(shape))
                for row in rows:
                    file.write(row.tobytes())
        except OSError as error:
            raise UserError(f"cannot write the cache {path}: {error.strerror}") from None


class PackedSlices:
    """Slices of a prepared data set in some of its windows, as they were prepared.

    A series takes `size * size` bytes per slice and window: all three windows take 3.8 times the bytes of
    their PNG.

    Args:
        prepared: the prepared data set.
        windows: names of the windows to pack.
        cache: folder of the cache.
    """

    def __init__(self, prepared: PreparedDataset, windows: Sequence[str], cache: Path) -> None:
        self.prepared = prepared
        self.channels = prepared.channels(windows)
        self.cache = SeriesCache(cache, prepared.folder, ("slices", *windows))

    def read(self, key: tuple[str, str], indices: Sequence[int]) -> np.ndarray:
        """Read slices as uint8 (len(indices), size, size, windows); errors as in `SeriesCache.open`."""
        size, source = self.prepared.size, image_folder(self.prepared.folder, *key)
        shape = (self.prepared.slice_counts[key], size, size, len(self.channels))
        packed = self.cache.open(
            source,
            shape,
            lambda: (read_windows(source, [index], size, self.channels) for index in range(shape[0])),
        )
        return packed[np.asarray(indices)]


def _header(shape: tuple[int, ...]) -> bytes:
    """Return what a .npy file of uint8 begins with."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _map(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Map the array of a file into memory; None if there is none, or it is damaged."""
    header = _header(shape)
    try:
        with path.open("rb") as file:
            # compared, not parsed: np.load takes a damaged header for a zip file or for Python
            if file.read(len(header)) != header or path.stat().st_size != len(header) + prod(shape):
                return None
            packed = np.memmap(file, np.uint8, "r", offset=len(header), shape=shape)
    except OSError:
        return None
    return np.asarray(packed)  # slicing a plain array takes less time


def _remove_others(path: Path) -> None:
    """Remove earlier versions of the file, and what killed processes have left of it."""
    series = path.name.rsplit(".", 2)[0]
    for other in path.parent.iterdir() if path.parent.is_dir() else ():
        # another series may have a longer name with the same beginning
        is_older = other.name != path.name and other.name.rsplit(".", 2)[0] == series
        with suppress(FileNotFoundError):
            if is_older or (
                other.name.startswith(f".{series}.")
                and time.time() - other.stat().st_mtime > _LONGEST_WRITE_S
            ):
                other.unlink()
