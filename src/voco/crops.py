"""Where crops lie on a canvas, and how much a random crop overlaps each base crop.

A canvas is cut into a grid of base crops that touch and cover it whole; random crops of the same size lie
anywhere on it. The share of a random crop that each base crop covers is its position label (VoCo, arXiv
2402.17300, section 3.2). Grids and labels hold for any number of dimensions; a canvas of slices has three,
(z, y, x). With one cell along z, as in 2D-VoCo, every crop lies at z = 0, and labels depend on (y, x) alone.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike


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
