"""Slices of a prepared set as raw arrays on a fast disk, for training that is limited by PNG decoding.

A series is packed when it is first read. Raw slices take `size * size` bytes per window, about ten times
their PNG size.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.core.errors import UserError
from src.core.files import atomic_path
from src.data.prepared import PreparedDataset, image_folder, read_windows


class PackedSlices:
    """Reads slices from `<folder>/<digest>/<patient_id>/<series_id>.npy`, and packs missing series.

    Several processes may read and pack the same series. The digest changes with the windows and whenever
    the data set is prepared again.

    Args:
        prepared: the prepared data set.
        windows: names of the windows to pack.
        folder: folder of the cache; several data sets may share it.
    """

    def __init__(self, prepared: PreparedDataset, windows: Sequence[str], folder: Path) -> None:
        self.prepared = prepared
        self.channels = prepared.channels(windows)
        digest = hashlib.sha256((prepared.folder / "dataset.json").read_bytes())
        digest.update(prepared.series.to_csv(index=False).encode())
        digest.update(str((prepared.folder / "series.csv").stat().st_mtime_ns).encode())
        digest.update(repr((str(prepared.folder.absolute()), *windows)).encode())
        self.folder = folder / digest.hexdigest()[:16]

    def read(self, key: tuple[str, str], indices: Sequence[int]) -> np.ndarray:
        """Read slices as uint8 (len(indices), size, size, windows).

        Raises:
            UserError: the series must be packed, and a slice is missing or damaged, or the disk is full.
        """
        path = self.folder / key[0] / f"{key[1]}.npy"
        if not path.exists():
            self._pack(key, path)
        return np.load(path, mmap_mode="r")[np.asarray(indices)]

    def _pack(self, key: tuple[str, str], path: Path) -> None:
        size, source = self.prepared.size, image_folder(self.prepared.folder, *key)
        shape = (self.prepared.slice_counts[key], size, size, len(self.channels))
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        try:
            # not through a memory map: on a full disk it would kill the process
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for index in range(shape[0]):
                    file.write(read_windows(source, [index], size, self.channels).tobytes())
        except OSError as error:
            raise UserError(f"cannot write the cache {path}: {error.strerror}") from None
