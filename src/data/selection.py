"""Selection of the slices of a series to keep."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.core.errors import UserError

_FINEST_MM = 0.1
_SAME_MM = 1e-3  # positions are rounded decimals


def even_indices(n_slices: int, count: int, offset: float = 0.5) -> np.ndarray:
    """Return `count` slices spread evenly over `n_slices`, one of each of `count` equal bins, int64.

    If `count` exceeds `n_slices`, slices repeat.

    Args:
        offset: place in every bin, from 0 to below 1; 0.5 is the middle.
    """
    return ((np.arange(count) + offset) * n_slices / count).astype(np.int64)


def neighbour_indices(indices: np.ndarray, count: int, slices: int) -> np.ndarray:
    """(...) middle slices -> (..., count) with their neighbours; beyond either end, the end slice repeats."""
    return np.clip(indices[..., None] + np.arange(count) - count // 2, 0, slices - 1)


def nearest(rising: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the index of the nearest increasing value for each wanted one; ties go to the lower value."""
    right = np.clip(np.searchsorted(rising, wanted), 1, max(1, len(rising) - 1))
    if len(rising) == 1:
        return np.zeros(wanted.shape, dtype=np.int64)
    left = right - 1
    return np.where(wanted - rising[left] <= rising[right] - wanted, left, right).astype(np.int64)


@dataclass(frozen=True)
class Neighbours:
    """Slices that are shown together with a slice, as channels: `count` of them, centred on it."""

    count: int = 1
    """odd; 1 is the slice alone"""
    distance_mm: float = 0.0
    """distance from one to the next; 0 takes the adjacent slices at any distance"""

    def find(self, indices: np.ndarray, slices: int, read_z_mm: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the neighbours of slices, head to feet; beyond either end, the end slice repeats.

        Args:
            indices: int64 (...) slices of a series.
            slices: number of slices of the series.
            read_z_mm: returns their positions (slices,), decreasing; only called if distances count.

        Returns:
            int64 (..., count).
        """
        if self.count == 1 or not self.distance_mm:
            return neighbour_indices(indices, self.count, slices)
        depth = -np.asarray(read_z_mm(), dtype=np.float64)
        steps = np.arange(self.count) - self.count // 2
        return nearest(depth, depth[indices][..., None] + steps * self.distance_mm)


@dataclass(frozen=True)
class SliceSelection:
    """Keeps all slices (default); or about one per `spacing_z_mm`; or `count` evenly spread ones, each once.

    Slices are selected, never interpolated: every grey level was reconstructed by the scanner.
    """

    spacing_z_mm: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if self.spacing_z_mm is not None and self.count is not None:
            raise UserError("--spacing-z-mm and --count exclude each other")
        if self.spacing_z_mm is not None and not self.spacing_z_mm >= _FINEST_MM:
            raise UserError(f"--spacing-z-mm must be {_FINEST_MM} or more, got {self.spacing_z_mm:g}")
        if self.count is not None and self.count < 1:
            raise UserError(f"--count must be 1 or more, got {self.count}")

    def choose(self, z_mm: np.ndarray) -> np.ndarray:
        """Return increasing int64 indices of the slices to keep, given their decreasing positions `z_mm`."""
        n_slices = len(z_mm)
        if self.count is not None and self.count < n_slices:
            return even_indices(n_slices, self.count)
        if self.spacing_z_mm is None:
            return np.arange(n_slices)
        depth_mm = z_mm[0] - z_mm
        targets_mm = np.arange(0, depth_mm[-1] + _SAME_MM, self.spacing_z_mm)
        halfway_mm = (depth_mm[:-1] + depth_mm[1:]) / 2
        return np.unique(np.searchsorted(halfway_mm, targets_mm))

    @classmethod
    def read(cls, described: Any) -> "SliceSelection":
        """Create a selection from the result of `describe`."""
        return cls() if described == "all" else cls(**described)

    def describe(self) -> Any:
        """Return the form that dataset.json stores."""
        if self.count is not None:
            return {"count": self.count}
        return "all" if self.spacing_z_mm is None else {"spacing_z_mm": self.spacing_z_mm}


ALL_SLICES = SliceSelection()
