"""Index of the series of several prepared data sets to train on, and the visits of an epoch to each of them.

An index may contain hundreds of thousands of series, in every worker process. It therefore consists of a few
arrays of numbers and bytes: Python objects need more memory, and their reference counts make forked workers
copy shared pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from src.core.config import Doubtful
from src.core.errors import UserError
from src.data.doubtful import is_doubtful, is_trained_on
from src.data.prepared import (
    find_channels,
    image_folder,
    read_description,
    read_series_tables,
    read_windows,
    read_z_mm,
)
from src.voco.options import VocoOptions


@dataclass(frozen=True)
class Series:
    """One series of an index."""

    folder: Path
    set_number: int
    """place of its set among those of `--data`"""
    n_slices: int
    pixel_mm: float
    """side of a prepared pixel; NaN in an index opened without it"""
    size: int
    windows: tuple[int, ...]
    """channel of each requested window in the stored images"""

    def read(self, indices: Sequence[int], windows: Sequence[int] | None = None) -> np.ndarray:
        """Read slices by index, uint8 (U, size, size, C), in the requested windows or in some channels."""
        return read_windows(self.folder, indices, self.size, windows or self.windows)

    @cached_property
    def z_mm(self) -> np.ndarray:
        """(n_slices,) positions in mm, decreasing from head to feet."""
        return read_z_mm(self.folder, self.n_slices)


@dataclass(frozen=True)
class _Set:
    folder: Path
    size: int
    windows: tuple[int, ...]
    series: int
    repeat: int
    doubtful: int


class SeriesIndex:
    """Series by row, in the order of the sets and of their sorted tables; entries of an epoch by number.

    An epoch has `repeat` entries for every series of a set. The entries of the first set come first, as
    `repeat` passes over its series.
    """

    def __init__(
        self,
        sets: Sequence[_Set],
        patient_ids: np.ndarray,
        series_ids: np.ndarray,
        n_slices: np.ndarray,
        pixel_mm: np.ndarray,
    ) -> None:
        """`patient_ids`, `series_ids`: UTF-8 bytes, dtype S; each array has one element per series."""
        self._sets = tuple(sets)
        self._patient_ids, self._series_ids = patient_ids, series_ids
        self._n_slices, self._pixel_mm = n_slices, pixel_mm
        counts = np.array([source.series for source in sets])
        entries = counts * np.array([source.repeat for source in sets])
        self._first_row = np.cumsum(counts) - counts
        self._first_entry = np.cumsum(entries) - entries
        self.entries = int(entries.sum())

    def __len__(self) -> int:
        """Number of series, each counted once."""
        return len(self._n_slices)

    @property
    def sets(self) -> tuple[tuple[int, int], ...]:
        """Number of series and repeat factor of every set."""
        return tuple((source.series, source.repeat) for source in self._sets)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folder of every set."""
        return tuple(source.folder for source in self._sets)

    @property
    def doubtful(self) -> int:
        """Number of doubtful series in the sets, in the index or left out of it."""
        return sum(source.doubtful for source in self._sets)

    def row_of(self, entry: int) -> int:
        """Return the row of the series that an entry of an epoch visits."""
        number = np.searchsorted(self._first_entry, entry, side="right") - 1
        return int(self._first_row[number] + (entry - self._first_entry[number]) % self._sets[number].series)

    def series(self, row: int) -> Series:
        number = int(np.searchsorted(self._first_row, row, side="right")) - 1
        source = self._sets[number]
        folder = image_folder(source.folder, self._patient_ids[row].decode(), self._series_ids[row].decode())
        slices, pixel_mm = int(self._n_slices[row]), float(self._pixel_mm[row])
        return Series(folder, number, slices, pixel_mm, source.size, source.windows)

    def table(self) -> pd.DataFrame:
        """Return one row per series: set (its index), patient_id, series_id.

        The table is created at each call, because its text needs much memory: store it if it is used often.
        """
        return pd.DataFrame(
            {
                "set": np.repeat(np.arange(len(self._sets)), [source.series for source in self._sets]),
                "patient_id": pd.Series(np.strings.decode(self._patient_ids, "utf-8"), dtype="str"),
                "series_id": pd.Series(np.strings.decode(self._series_ids, "utf-8"), dtype="str"),
            }
        )


def open_index(options: VocoOptions) -> SeriesIndex:
    """Open the index of `--data`, with its windows and repeat factors.

    Raises:
        UserError: a set is unusable, has no series to train on, lacks a window or, for `--extent box`, the
            pixel size.
    """
    names = options.windows_of_sets
    repeats = options.repeat or (1,) * len(options.data)
    needs_mm = options.extent == "box"
    opened = [
        _open_set(Path(folder), wanted, repeat, needs_mm, options.doubtful)
        for folder, wanted, repeat in zip(options.data, names, repeats, strict=True)
    ]
    sets, *columns = zip(*opened, strict=True)
    return SeriesIndex(sets, *map(np.concatenate, columns))


def _open_set(
    folder: Path, wanted: Sequence[str], repeat: int, needs_mm: bool, doubtful: Doubtful
) -> tuple[_Set, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Open a set; return it with columns of its series: patient ids, series ids, slices, pixel_mm."""
    description = read_description(folder)
    channels = find_channels(folder, [window["name"] for window in description["windows"]], wanted)
    columns = ["patient_id", "series_id", "slices", "status", *(["pixel_mm"] if needs_mm else [])]
    _, table = read_series_tables(folder, columns)
    if table.empty:
        raise UserError(f"{folder} has no usable series: see {folder / 'series.csv'}")
    found = int(is_doubtful(table).sum())
    table = table[is_trained_on(table, doubtful, folder)]
    pixel_mm = table["pixel_mm"] if needs_mm else np.full(len(table), np.nan)
    if needs_mm and not pixel_mm.gt(0).all():
        raise UserError(
            f"{folder / 'series.csv'} lacks the pixel_mm that --extent box needs; prepare the data set again"
        )
    source = _Set(folder, description["size"], channels, len(table), repeat, doubtful=found)
    patient_ids, series_ids = (_to_bytes(table[name]) for name in ("patient_id", "series_id"))
    return (
        source,
        patient_ids,
        series_ids,
        table["slices"].to_numpy(np.int32),
        np.asarray(pixel_mm, dtype=np.float32),
    )


def _to_bytes(text: pd.Series) -> np.ndarray:
    """Encode text as UTF-8 in one block, dtype S, with the width of the longest element."""
    return np.array([value.encode() for value in text], dtype="S")
