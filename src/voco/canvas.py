"""From the slices of a series to a canvas, and from the canvas to the tiles of its crops.

A plane is what is kept of a slice: a rectangle, resized. It is the same for all slices and visits of a series,
so planes can be stored (`src/voco/planes.py`). A canvas has `depth` positions along the body and lies on the
planes in whole pixels. An extent selects planes, the slice at each position, and the place of the canvas. All
crops of a sample are of one size, and cover the same number of millimetres.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import cv2
import numpy as np

from src.data.selection import SliceSelection, even_indices
from src.voco.crops import CropGrid
from src.voco.index import Series
from src.voco.options import VocoOptions

_FOREGROUND_SLICES = 16
"""Slices that the foreground of a series is found in."""

_VARIETY = 1.5
"""Slices that are kept of a series per position of a canvas, if the slices of a position vary."""


@dataclass(frozen=True)
class Rectangle:
    """Pixels of a slice. It may extend outside of the slice, where pixels are 0 (air)."""

    top: int
    left: int
    height: int
    width: int

    def resize(self, image: np.ndarray, side: int) -> np.ndarray:
        """Crop uint8 (H, W, C) and resize to (side, side, C)."""
        return resize_plane(self._cut(image), side)

    def _cut(self, image: np.ndarray) -> np.ndarray:
        top, left = max(self.top, 0), max(self.left, 0)
        bottom = max(top, min(self.top + self.height, image.shape[0]))
        right = max(left, min(self.left + self.width, image.shape[1]))
        inside = image[top:bottom, left:right]
        if inside.shape[:2] == (self.height, self.width):
            return inside
        padded = np.zeros((self.height, self.width, image.shape[2]), dtype=np.uint8)
        if inside.size:
            padded[top - self.top : bottom - self.top, left - self.left : right - self.left] = inside
        return padded


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


def find_foreground(images: np.ndarray, level: float) -> Rectangle:
    """Find the smallest rectangle around all pixels above `level` in the first window of any slice.

    This is the foreground crop of the published recipe, in the plane. Without such pixels, return the whole
    image.

    Args:
        images: uint8 (U, H, W, C).
    """
    # maximum of all windows at once: numpy is slow where it must skip channels
    bright = images.max(axis=0)[..., 0] > level  # (H, W)
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    if len(rows) == 0:
        return Rectangle(0, 0, *bright.shape)
    return Rectangle(
        int(rows[0]), int(columns[0]), int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
    )


def cut_tiles(
    planes: np.ndarray, rows: np.ndarray, corners: np.ndarray, crop: tuple[int, int], tile: int
) -> np.ndarray:
    """Cut crops out of planes, each from its own slices, and resize them in the plane.

    Args:
        planes: uint8 (U, H, W, C), one per slice.
        rows: int (K, T) rows of `planes`: the T slices of each crop.
        corners: int (K, 2) first row and column of each crop. Crops may extend outside of the planes.
        crop: height and width of a crop.
        tile: side of the result in pixels.

    Returns:
        uint8 (K, T, tile, tile, C), a contiguous copy.
    """
    tiles = np.empty((*rows.shape, tile, tile, planes.shape[-1]), dtype=np.uint8)
    for number, (y, x) in enumerate(corners.tolist()):
        place = Rectangle(y, x, *crop)
        for slot, row in enumerate(rows[number].tolist()):
            tiles[number, slot] = place.resize(planes[row], tile)
    return tiles


def resize_plane(image: np.ndarray, side: int) -> np.ndarray:
    """Resize uint8 (H, W, C) to (side, side, C): area averages if no axis grows, else linear.

    When enlarging with area averages, OpenCV repeats pixels. Slices are resized one by one: several at once,
    as channels, were not faster.
    """
    rows, columns, channels = image.shape
    if rows == columns == side:
        return image
    method = cv2.INTER_AREA if min(rows, columns) >= side else cv2.INTER_LINEAR
    resized = cv2.resize(image, (side, side), interpolation=method)
    return resized.reshape(side, side, channels)  # OpenCV drops a single channel
