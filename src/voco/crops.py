"""Where crops lie on a canvas, and how much a random crop overlaps each base crop.

A canvas is cut into a grid of base crops that touch and cover it whole; random crops of the same size lie
anywhere on it. The share of a random crop that each base crop covers is its position label (VoCo, arXiv
2402.17300, section 3.2). Grids and labels hold for any number of dimensions; a canvas of slices has three,
(z, y, x). With one cell along z, as in 2D-VoCo, every crop lies at z = 0, and labels depend on (y, x) alone.

SimCLR needs no labels: its views are parts of crops.
"""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_LONGEST = np.log(4 / 3)  # ratio of the sides of a view


@dataclass(frozen=True)
class CropGrid:
    """A canvas of `canvas` pixels cut into `grid` base crops along each axis.

    Raises:
        ValueError: the two differ in length, or the canvas does not divide evenly. Uneven crops would leave a
            strip that no base covers, and a random crop on it would have a label that sums to less than 1.
    """

    canvas: tuple[int, ...]
    grid: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.canvas) != len(self.grid):
            raise ValueError(f"canvas {self.canvas} and grid {self.grid} differ in dimensions")
        for pixels, cells in zip(self.canvas, self.grid, strict=True):
            if cells < 1 or pixels < cells or pixels % cells:
                raise ValueError(f"a canvas of {pixels} pixels cannot be cut into {cells} equal crops")

    @property
    def crop(self) -> tuple[int, ...]:
        """Pixels of a crop along each axis."""
        return tuple(pixels // cells for pixels, cells in zip(self.canvas, self.grid, strict=True))

    def base_starts(self) -> np.ndarray:
        """First pixel of every base crop, x varying fastest: int64 (N, d) with N the product of `grid`."""
        cells = product(*(range(cells) for cells in self.grid))
        return np.array(list(cells), dtype=np.int64) * np.array(self.crop)

    def random_part(self, rng: np.random.Generator, jitter: float) -> tuple["CropGrid", np.ndarray]:
        """Draw a smaller canvas of as many cells inside this one.

        Crops keep at least 1 - `jitter` of their pixels along each axis. One number is drawn for the first
        axis and one for all others, so that proportions in the plane are kept.

        Returns:
            The grid of the smaller canvas, and its first pixel in this one, int64 (d,).
        """
        size = np.array(self.crop)
        smallest = np.ceil(size * (1 - jitter)).astype(np.int64)
        drawn = rng.random(2)[np.minimum(np.arange(len(size)), 1)]
        part = (smallest + np.floor(drawn * (size - smallest + 1)).astype(np.int64)) * np.array(self.grid)
        first = rng.integers(0, np.array(self.canvas) - part + 1)
        return CropGrid(tuple(part.tolist()), self.grid), first

    def random_starts(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """First pixel of `count` crops, uniform over the positions inside the canvas: int64 (count, d)."""
        last = np.array(self.canvas) - np.array(self.crop)
        return rng.integers(0, last + 1, size=(count, len(self.canvas)))


def overlap_labels(random_starts: ArrayLike, base_starts: ArrayLike, crop: tuple[int, ...]) -> np.ndarray:
    """Share of each random crop that each base crop covers.

    Args:
        random_starts: (R, d) first pixels of the random crops.
        base_starts: (N, d) first pixels of the base crops.
        crop: pixels of a crop along each of the d axes, the same for both.

    Returns:
        float32 (R, N) in [0, 1]: `overlap(r_i, b_j) / area(crop)`. A row sums to 1 where the base crops cover
        the random crop once, as those of a `CropGrid` do.
    """
    distance = np.abs(
        np.asarray(random_starts)[:, None, :] - np.asarray(base_starts)[None, :, :]
    )  # (R, N, d)
    covered = np.clip(np.array(crop) - distance, 0, None).prod(axis=-1)
    return (covered / np.prod(crop)).astype(np.float32)


class CropPlaces(NamedTuple):
    """Where the K crops of a sample lie, in slices of the series and pixels of its planes."""

    depths: np.ndarray
    """int64 (K, T) positions along the body, of those of a canvas, that the slices of a crop show"""
    slices: np.ndarray
    """int64 (K, T) slices of the series at these positions"""
    corners: np.ndarray
    """int64 (K, 2) first row and column of each crop"""
    sides: np.ndarray
    """int64 (K, 2) height and width of each crop"""
    is_mirrored: np.ndarray
    """bool (K,) whether left and right are exchanged"""


def draw_views(crops: CropPlaces, smallest_area: float, rng: np.random.Generator) -> CropPlaces:
    """Draw two views of half of the crops: random parts of them, mirrored or not (SimCLR, arXiv 2002.05709).

    A view has a share of the crop's area, uniform from `smallest_area` to 1, anywhere in the crop. The ratio
    of its sides is log-uniform from 3/4 to 4/3; none is longer than the crop's.

    Returns:
        2V places with V = K // 2: a view of each chosen crop, then another of each, in the same order.
    """
    count = len(crops.corners) // 2
    chosen = np.tile(rng.permutation(len(crops.corners))[:count], 2)
    area = rng.uniform(smallest_area, 1, 2 * count)
    ratio = np.exp(rng.uniform(-_LONGEST, _LONGEST, 2 * count))
    shares = np.minimum(np.sqrt(np.stack([area / ratio, area * ratio], axis=1)), 1)  # of height and width
    whole = crops.sides[chosen]
    sides = np.maximum(np.rint(shares * whole), 1).astype(np.int64)
    corners = crops.corners[chosen] + rng.integers(0, whole - sides + 1)
    return CropPlaces(
        crops.depths[chosen], crops.slices[chosen], corners, sides, is_mirrored=rng.random(2 * count) < 0.5
    )
