"""Planes of slices, and the tiles of crops that are cut from them.

A plane is what is kept of a slice: a rectangle, resized. It is the same for all slices and visits of a
series, so that planes can be stored. Crops lie on planes in whole pixels.
"""

from dataclasses import dataclass

import cv2
import numpy as np


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
    planes: np.ndarray, rows: np.ndarray, corners: np.ndarray, sides: np.ndarray, tile: int
) -> np.ndarray:
    """Cut crops out of planes, each from its own slices, and resize them in the plane.

    Args:
        planes: uint8 (U, H, W, C), one per slice.
        rows: int (K, T) rows of `planes`: the T slices of each crop.
        corners: int (K, 2) first row and column of each crop. Crops may extend outside of the planes.
        sides: int (K, 2) height and width of each crop.
        tile: side of the result in pixels.

    Returns:
        uint8 (K, T, tile, tile, C), a contiguous copy.
    """
    tiles = np.empty((*rows.shape, tile, tile, planes.shape[-1]), dtype=np.uint8)
    for number, (corner, size) in enumerate(zip(corners.tolist(), sides.tolist(), strict=True)):
        place = Rectangle(*corner, *size)
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
