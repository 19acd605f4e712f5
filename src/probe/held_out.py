"""Stacks that a network is measured on, and crops of them that are the same for every method."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.core.runtime import sample_rng
from src.data.prepared import PreparedDataset
from src.voco.crops import CropGrid, overlap_labels, resize_plane

GRID = 3
"""Tiles along each side of a slice, in the geometry that all methods share."""


@dataclass(frozen=True)
class HeldOut:
    """A prepared set, some patients of it, and the windows that a network takes. `open` makes one."""

    dataset: PreparedDataset
    series: pd.DataFrame
    """Of the chosen patients: the rows of `dataset.series`, with their index."""
    channels: tuple[int, ...]

    @classmethod
    def open(cls, folder: Path, windows: Sequence[str], patients: int | None = None) -> "HeldOut":
        """Open a prepared set, or its first `patients` patients.

        Raises:
            UserError: no such set, no usable series in it, or it lacks a window.
        """
        dataset = PreparedDataset.open(folder)
        channels = dataset.channels(windows)
        series = dataset.series
        if series.empty:
            raise UserError(f"{folder} has no usable series")
        chosen = series["patient_id"].drop_duplicates()[:patients]
        return cls(dataset, series[series["patient_id"].isin(chosen)], channels)

    @property
    def patients(self) -> int:
        return self.series["patient_id"].nunique()

    def read(self, patient_id: str, series_id: str, indices: np.ndarray, side: int) -> np.ndarray:
        """Whole slices, resized: uint8 (T, side, side, C). Each slice is decoded once."""
        unique, place = np.unique(indices, return_inverse=True)
        images = self.dataset.read_slices(patient_id, series_id, unique)[..., list(self.channels)]
        return np.stack([resize_plane(image, side) for image in images])[place]


def middle_indices(n_slices: int, count: int) -> np.ndarray:
    """`count` slices spread evenly over the middle half of a series, the same relative heights in each."""
    share = 0.25 + 0.5 * (np.arange(count) + 0.5) / count
    return (share * n_slices).astype(np.int64)


def cut(images: np.ndarray, starts: np.ndarray, tile: int) -> np.ndarray:
    """Square tiles out of every slice; what reaches outside of the image, by less than a tile, is black.

    Args:
        images: (T, H, W, C).
        starts: (K, 2) first row and column of each.

    Returns:
        (K, T, tile, tile, C).
    """
    padded = np.pad(images, ((0, 0), (tile, tile), (tile, tile), (0, 0)))
    return np.stack([padded[:, y + tile : y + 2 * tile, x + tile : x + 2 * tile] for y, x in starts])


def grid_starts(tile: int) -> np.ndarray:
    """First rows and columns of the 3 x 3 tiles of a slice of 3 * `tile` pixels: int64 (9, 2)."""
    return CropGrid((GRID * tile,) * 2, (GRID,) * 2).base_starts()


def standard_crops(
    held_out: HeldOut, row: int, draw: int, *, tile: int, slices: int, random_crops: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random crops and the 3 x 3 bases of one series, over slices of its middle half.

    Places are drawn as shares of the image, so that they are the same for networks with other tiles.

    Args:
        row: of `held_out.series`.
        draw: numbers repeated draws.

    Returns:
        uint8 (R + 9, slices, tile, tile, C), random crops first, and labels float32 (R, 9).
    """
    series = held_out.series.iloc[row]
    indices = middle_indices(int(series["slices"]), slices)
    images = held_out.read(series["patient_id"], series["series_id"], indices, GRID * tile)
    places = sample_rng(seed, draw, row).random((random_crops, 2))
    randoms = np.rint(places * (GRID - 1) * tile).astype(np.int64)
    bases = grid_starts(tile)
    return cut(images, np.concatenate([randoms, bases]), tile), overlap_labels(randoms, bases, (tile, tile))
