"""The part of a series that becomes a canvas: its planes, the slices along the body, and its place on them.

A canvas has `depth` positions along the body and lies on the planes in whole pixels. All crops of a sample
are of one size, and cover the same number of millimetres.
"""

from abc import ABC, abstractmethod

import numpy as np

from src.data.selection import SliceSelection, even_indices
from src.voco.canvas import Rectangle, find_foreground
from src.voco.crops import CropGrid
from src.voco.index import Series
from src.voco.options import VocoOptions

_FOREGROUND_SLICES = 16
"""Slices that the foreground of a series is found in."""

_VARIETY = 1.5
"""Slices that are kept of a series per position of a canvas, if the slices of a position vary."""


class Extent(ABC):
    """The part of a series that becomes a canvas."""

    def __init__(self, options: VocoOptions) -> None:
        self.depth, self.canvas = options.depth, options.canvas
        self.grid = CropGrid(
            (options.depth, options.canvas, options.canvas), (options.grid_z, options.grid, options.grid)
        )

    @abstractmethod
    def kept_slices(self, series: Series) -> np.ndarray:
        """Return the slices that canvases may show, int64, increasing."""

    @abstractmethod
    def plane_side(self, series: Series) -> int:
        """Return the height and width of the planes in pixels."""

    @abstractmethod
    def find_rectangle(self, series: Series) -> Rectangle:
        """Return the part of the slices that is resized to the planes; it may have to read slices."""

    @abstractmethod
    def choose_slices(self, series: Series, rng: np.random.Generator) -> np.ndarray:
        """Return the slice at every position along the body, int64 (depth,), non-decreasing: head to feet."""

    def choose_canvas(self, series: Series, rng: np.random.Generator) -> tuple[CropGrid, np.ndarray]:
        """Return the canvas in pixels of the planes, and its first row and column there, int64 (2,)."""
        return self.grid, np.zeros(2, dtype=np.int64)


class ForegroundExtent(Extent):
    """An extent whose planes are the foreground: air is cut off, and patients of any size fill the canvas."""

    def __init__(self, options: VocoOptions) -> None:
        super().__init__(options)
        self.level = options.foreground * 255

    def plane_side(self, series: Series) -> int:
        return self.canvas

    def find_rectangle(self, series: Series) -> Rectangle:
        if not self.level:
            return Rectangle(0, 0, series.size, series.size)
        indices = even_indices(series.n_slices, min(series.n_slices, _FOREGROUND_SLICES))
        return find_foreground(series.read(indices, series.windows[:1]), self.level)


class WholeExtent(ForegroundExtent):
    """The whole series in `depth` even steps; with `--jitter`, a random slice of each step."""

    def __init__(self, options: VocoOptions) -> None:
        super().__init__(options)
        self.varies = options.jitter > 0

    def kept_slices(self, series: Series) -> np.ndarray:
        count = round(self.depth * (_VARIETY if self.varies else 1))
        return even_indices(series.n_slices, min(series.n_slices, count))

    def choose_slices(self, series: Series, rng: np.random.Generator) -> np.ndarray:
        kept = self.kept_slices(series)
        return kept[even_indices(len(kept), self.depth, rng.random() if self.varies else 0.5)]


class SlabExtent(ForegroundExtent):
    """`depth` consecutive slices from a random start; a shorter series is stretched over them."""

    def kept_slices(self, series: Series) -> np.ndarray:
        return np.arange(series.n_slices)

    def choose_slices(self, series: Series, rng: np.random.Generator) -> np.ndarray:
        n_slices = min(self.depth, series.n_slices)
        first = rng.integers(0, series.n_slices - n_slices + 1)
        return first + even_indices(n_slices, self.depth)


class BoxExtent(Extent):
    """A box of `depth` x `canvas` x `canvas` isotropic voxels at a random position in the series.

    It lies inside the images where they are large enough, else around them: pixels outside of the slices are
    0, and positions beyond the first or last slice repeat that slice. Planes are whole slices; those with
    finer pixels than the voxels are reduced to them, and of slices that are closer than the voxels, one per
    voxel is kept. Sides of the crops are rounded to whole pixels of the planes.
    """

    def __init__(self, options: VocoOptions) -> None:
        super().__init__(options)
        self.spacing_mm = options.spacing_mm

    def kept_slices(self, series: Series) -> np.ndarray:
        return SliceSelection(spacing_z_mm=self.spacing_mm).choose(series.z_mm)

    def plane_side(self, series: Series) -> int:
        return max(1, min(series.size, round(series.size * series.pixel_mm / self.spacing_mm)))

    def find_rectangle(self, series: Series) -> Rectangle:
        return Rectangle(0, 0, series.size, series.size)

    def choose_slices(self, series: Series, rng: np.random.Generator) -> np.ndarray:
        kept = self.kept_slices(series)
        depth_mm = series.z_mm[0] - series.z_mm[kept]  # increasing from 0
        room_mm = depth_mm[-1] - (self.depth - 1) * self.spacing_mm
        first_mm = rng.uniform(min(room_mm, 0), max(room_mm, 0))
        positions_mm = first_mm + np.arange(self.depth) * self.spacing_mm
        halfway_mm = (depth_mm[:-1] + depth_mm[1:]) / 2
        return kept[np.searchsorted(halfway_mm, positions_mm)]

    def choose_canvas(self, series: Series, rng: np.random.Generator) -> tuple[CropGrid, np.ndarray]:
        side = self.plane_side(series)
        pixel_mm = series.size * series.pixel_mm / side
        crop = max(1, round(self.grid.crop[1] * self.spacing_mm / pixel_mm))
        canvas = crop * self.grid.grid[1]
        room = side - canvas
        corner = rng.integers(min(room, 0), max(room, 0), size=2, endpoint=True)
        return CropGrid((self.depth, canvas, canvas), self.grid.grid), corner


def make_extent(options: VocoOptions) -> Extent:
    """Create the extent of `--extent`."""
    return {"slab": SlabExtent, "whole": WholeExtent, "box": BoxExtent}[options.extent](options)
