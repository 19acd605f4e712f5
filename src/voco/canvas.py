"""From the slices of a series to a canvas, and from the canvas to the tiles of its crops.

A canvas has `depth` positions along the body and `canvas` x `canvas` pixels in the plane. An extent selects
the slice at each position and the rectangle that is resized to the canvas. All slices of a sample share one
rectangle, so crops of equal size cover the same number of millimetres.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import cv2
import numpy as np

from src.data.selection import even_indices
from src.voco.index import Series
from src.voco.options import VocoOptions


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
        rows, columns, channels = image.shape
        bottom, right = self.top + self.height, self.left + self.width
        cut = image[max(self.top, 0) : min(bottom, rows), max(self.left, 0) : min(right, columns)]
        missing = (
            *(max(-self.top, 0), max(bottom - rows, 0)),
            *(max(-self.left, 0), max(right - columns, 0)),
        )
        if not any(missing):
            return cut
        padded = cv2.copyMakeBorder(cut, *missing, borderType=cv2.BORDER_CONSTANT, value=0)
        return padded.reshape(self.height, self.width, channels)


class Extent(ABC):
    """The part of a series that becomes a canvas."""

    @abstractmethod
    def choose_slices(self, series: Series, rng: np.random.Generator) -> np.ndarray:
        """Return the slice at every position along the body, int64 (depth,), non-decreasing: head to feet."""

    @abstractmethod
    def choose_rectangle(self, images: np.ndarray, series: Series, rng: np.random.Generator) -> Rectangle:
        """Return the part of the slices that becomes the square.

        Args:
            images: uint8 (U, S, S, C), the slices that the crops of the sample use.
        """


class ForegroundExtent(Extent):
    """An extent whose rectangle is the foreground: air is cut off, and patients of any size fill the canvas.

    The foreground is computed from the slices that were read, so that no other slice is decoded for it. If
    crops use only some slices of the canvas, the others may have foreground outside of the rectangle.
    """

    def __init__(self, depth: int, foreground: float):
        self.depth = depth
        self.level = foreground * 255

    def choose_rectangle(self, images: np.ndarray, series: Series, rng: np.random.Generator) -> Rectangle:
        return find_foreground(images, self.level) if self.level else Rectangle(0, 0, *images.shape[1:3])


class WholeExtent(ForegroundExtent):
    """The whole series in `depth` even steps."""

    def choose_slices(self, series: Series, rng: np.random.Generator) -> np.ndarray:
        return even_indices(series.n_slices, self.depth)


class SlabExtent(ForegroundExtent):
    """`depth` consecutive slices from a random start; a shorter series is stretched over them."""

    def choose_slices(self, series: Series, rng: np.random.Generator) -> np.ndarray:
        n_slices = min(self.depth, series.n_slices)
        first = rng.integers(0, series.n_slices - n_slices + 1)
        return first + even_indices(n_slices, self.depth)


class BoxExtent(Extent):
    """A box of `depth` x `canvas` x `canvas` isotropic voxels at a random position in the series.

    It lies inside the images where they are large enough, else around them: pixels outside of the slices are
    0, and positions beyond the first or last slice repeat that slice. Sides in the plane are rounded to whole
    pixels.
    """

    def __init__(self, depth: int, canvas: int, spacing_mm: float):
        self.depth, self.canvas, self.spacing_mm = depth, canvas, spacing_mm

    def choose_slices(self, series: Series, rng: np.random.Generator) -> np.ndarray:
        depth_mm = series.depth_mm()  # (n_slices,), increasing from 0
        room_mm = depth_mm[-1] - (self.depth - 1) * self.spacing_mm
        first_mm = rng.uniform(min(room_mm, 0), max(room_mm, 0))
        positions_mm = first_mm + np.arange(self.depth) * self.spacing_mm
        halfway_mm = (depth_mm[:-1] + depth_mm[1:]) / 2
        return np.searchsorted(halfway_mm, positions_mm)

    def choose_rectangle(self, images: np.ndarray, series: Series, rng: np.random.Generator) -> Rectangle:
        side = max(1, round(self.canvas * self.spacing_mm / series.pixel_mm))
        room = np.array(images.shape[1:3]) - side
        top, left = rng.integers(np.minimum(room, 0), np.maximum(room, 0), endpoint=True)
        return Rectangle(int(top), int(left), side, side)


def make_extent(options: VocoOptions) -> Extent:
    """Create the extent of `--extent`."""
    if options.extent == "box":
        return BoxExtent(options.depth, options.canvas, options.spacing_mm)
    foreground = {"slab": SlabExtent, "whole": WholeExtent}[options.extent]
    return foreground(options.depth, options.foreground)


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
    canvas: np.ndarray, slice_rows: np.ndarray, corners: np.ndarray, crop: tuple[int, int], tile: int
) -> np.ndarray:
    """Cut crops out of slices of a canvas, each from its own slices, and resize them in the plane.

    Args:
        canvas: uint8 (U, H, W, C) slices.
        slice_rows: int (K, T) rows of `canvas`: the T slices of each crop.
        corners: int (K, 2) first row and column of each crop.
        crop: rows and columns of a crop.
        tile: side of the result in pixels.

    Returns:
        uint8 (K, T, tile, tile, C), a contiguous copy.
    """
    rows, columns = crop
    tiles = np.empty((*slice_rows.shape, tile, tile, canvas.shape[-1]), dtype=np.uint8)
    for number, (y, x) in enumerate(corners):
        part = canvas[:, y : y + rows, x : x + columns]
        for place, index in enumerate(slice_rows[number]):
            tiles[number, place] = resize_plane(part[index], tile)
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
