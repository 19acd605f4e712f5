"""Planes of a series: what a canvas shows of its slices, from PNG or from a cache that stores them.

Both are made by the same function, and samples with and without a cache are equal in every bit.
"""

from collections.abc import Iterator

import numpy as np

from src.data.packed import SeriesCache
from src.voco.canvas import Rectangle
from src.voco.extents import Extent
from src.voco.index import Series, SeriesIndex
from src.voco.options import VocoOptions


class PlaneReader:
    """Reads planes of the series of an index.

    The rectangle of a series is found once in every process and remembered, 8 bytes per series.

    Args:
        index: the series.
        extent: selects their planes.
        options: `--cache`, and all that decides what it stores.
    """

    def __init__(self, index: SeriesIndex, extent: Extent, options: VocoOptions) -> None:
        self.extent = extent
        self.stores_all = options.neighbours > 1
        """neighbours of a slice may be any slices"""
        self._rectangles = np.zeros((len(index), 4), dtype=np.int16)  # height 0: not found yet
        names = ("extent", "canvas", "depth", "spacing_mm", "foreground")
        content = (*(getattr(options, name) for name in names), options.jitter > 0, self.stores_all)
        self._caches = ()
        if options.cache is not None:
            self._caches = tuple(
                SeriesCache(options.cache, folder, ("planes", *content, *windows))
                for folder, windows in zip(index.folders, options.windows_of_sets, strict=True)
            )

    def read(self, row: int, series: Series, slices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read the planes of some slices of a series.

        Args:
            row: row of the series in the index.
            slices: int (...), slices of the series.

        Returns:
            Planes uint8 (U, H, W, C), of these slices and perhaps of others; and the row there of each slice,
            int (...).
        """
        side = self.extent.plane_side(series)
        if not self._caches:
            indices, places = np.unique(slices, return_inverse=True)
            planes = np.empty((len(indices), side, side, len(series.windows)), dtype=np.uint8)
            for plane, made in zip(planes, self._make(row, series, indices), strict=True):
                plane[:] = made
            return planes, places.reshape(slices.shape)
        stored = np.arange(series.n_slices) if self.stores_all else self.extent.kept_slices(series)
        shape = (len(stored), side, side, len(series.windows))
        cache = self._caches[series.set_number]
        planes = cache.open(series.folder, shape, lambda: self._make(row, series, stored))
        return planes, np.searchsorted(stored, slices)

    def _make(self, row: int, series: Series, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Make planes (H, W, C) of slices from PNG."""
        side, rectangle = self.extent.plane_side(series), self._rectangle(row, series)
        for index in indices:
            yield rectangle.resize(series.read([index])[0], side)

    def _rectangle(self, row: int, series: Series) -> Rectangle:
        if not self._rectangles[row, 2]:
            found = self.extent.find_rectangle(series)
            self._rectangles[row] = found.top, found.left, found.height, found.width
        return Rectangle(*self._rectangles[row].tolist())
