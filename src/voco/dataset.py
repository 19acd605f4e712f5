"""Samples for pre-training: crops of a prepared series with their position labels, or views of crops.

Only the slices of its crops and their neighbours are read, each once. Every draw is derived from (seed,
epoch, entry), so that a sample is the same in every process, worker and resumed run.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.core.runtime import sample_rng
from src.data.prepared import as_channels
from src.data.selection import Neighbours, even_indices
from src.voco.appearance import draw_appearance
from src.voco.canvas import cut_tiles
from src.voco.crops import CropPlaces, draw_views, overlap_labels
from src.voco.extents import make_extent
from src.voco.index import Series, SeriesIndex, open_index
from src.voco.options import VocoOptions
from src.voco.planes import PlaneReader

MAX_HEIGHTS = 8
"""Heights that the random crops of a sample share: else it would decode a slice for each of many crops."""

_LARGEST_SHIFT = 0.1 * 255


class VolumeSample(NamedTuple):
    """One volume, or a batch of them with a leading B."""

    tiles: Tensor
    """uint8 (K, T, tile, tile, C): R random crops, then N base crops, of T slices each, or the views of
    `draw_views`; channels are the windows of each slice and of its neighbours, head to feet"""
    label: Tensor
    """float32 (R, N) position labels; (0,) for views"""
    series_row: Tensor
    """int64 (), row of the series in the index"""
    appearance: Tensor = torch.empty(0)
    """float32 (K, PARAMETERS) changes of grey levels that `Appearance` is to make; (0,) for none"""


class VocoDataset(Dataset[VolumeSample]):
    """Samples of the series of an index, by `(epoch, entry)`; its length is the number of entries per epoch.

    An entry is one visit to a series: a set with a repeat factor has several per series, with different
    draws.
    """

    def __init__(self, index: SeriesIndex, options: VocoOptions) -> None:
        self.index = index
        self.extent = make_extent(options)
        self.planes = PlaneReader(index, self.extent, options)
        self.changes = CropChanges(
            flip=options.crop_flip,
            rotate90=options.crop_rotate90,
            shift=options.crop_shift,
        )
        self.shows_views, self.view_area = options.shows_views, options.view_area
        self.appearance = options.appearance
        self.neighbours = Neighbours(options.neighbours, options.neighbour_mm)
        self.jitter = options.jitter
        self.random_crops, self.crop_slices, self.tile = options.random_crops, options.slices, options.tile
        self.seed = options.seed

    def __len__(self) -> int:
        return self.index.entries

    def __getitem__(self, key: tuple[int, int]) -> VolumeSample:
        epoch, entry = key
        rng = sample_rng(self.seed, epoch, entry)
        row = self.index.row_of(entry)
        series = self.index.series(row)
        places, label = self.place_crops(series, rng)
        if self.shows_views:
            places, label = draw_views(places, self.view_area, rng), np.empty(0, dtype=np.float32)
        shown = self.neighbours.find(places.slices, series.n_slices, lambda: series.z_mm)
        # each slice is read once: planes (U, H, W, windows), their rows (K, T, neighbours)
        planes, rows = self.planes.read(row, series, shown)
        tiles = cut_tiles(planes, rows.reshape(len(rows), -1), places.corners, places.sides, self.tile)
        tiles[places.is_mirrored] = tiles[places.is_mirrored, :, :, ::-1]
        self.changes.apply(tiles, rng)  # (K, T * neighbours, tile, tile, windows)
        tiles = as_channels(tiles.reshape(*shown.shape, *tiles.shape[2:]))  # (K, T, tile, tile, C)
        drawn = draw_appearance(len(tiles), self.appearance, self.tile, rng)
        tiles, label, drawn = map(torch.from_numpy, (tiles, label, drawn))
        return VolumeSample(tiles, label, torch.tensor(row), drawn)

    def place_crops(self, series: Series, rng: np.random.Generator) -> tuple[CropPlaces, np.ndarray]:
        """Draw the places of the crops of a sample, R random crops, then N base crops: its first draws.

        Returns:
            The places, and the position labels, float32 (R, N).
        """
        canvas_slices = self.extent.choose_slices(series, rng)  # (depth,)
        canvas, corner = self.extent.choose_canvas(series, rng)
        grid, first = canvas.random_part(rng, self.jitter)
        # crop positions on this part of the canvas: K = R random crops, then the N bases
        bases = grid.base_starts()
        randoms = grid.random_starts(rng, self.random_crops)
        randoms[:, 0] = randoms[np.arange(len(randoms)) % MAX_HEIGHTS, 0]
        label = overlap_labels(randoms, bases, grid.crop)  # (R, N)
        starts = first + np.concatenate([randoms, bases])  # (K, 3)
        # all crops of a visit share the place of their slices in the bins
        crop_depth, *sides = grid.crop
        within = even_indices(crop_depth, self.crop_slices, rng.random() if self.jitter else 0.5)
        depths = starts[:, :1] + within  # (K, T)
        corners, sides = corner + starts[:, 1:], np.tile(sides, (len(starts), 1))
        mirrored = np.zeros(len(starts), dtype=bool)
        return CropPlaces(depths, canvas_slices[depths], corners, sides, mirrored), label


class CropChanges:
    """Random changes of single crops, drawn once per crop and shared by its slices; labels do not change.

    A rotated or recoloured crop still comes from the same position, which the network has to predict in spite
    of the change. Random crops and base crops are changed in the same way. See also `Appearance`.

    Args:
        flip: probability of a flip along each of z, y and x.
        rotate90: probability of one to three quarter turns in the plane.
        shift: probability of adding a constant to the grey levels, up to a tenth of their range, clipped at
            black and white (VoCo 3D).
    """

    def __init__(self, *, flip: float, rotate90: float, shift: float) -> None:
        self.flip, self.rotate90, self.shift = flip, rotate90, shift

    def apply(self, tiles: np.ndarray, rng: np.random.Generator) -> None:
        """Change uint8 tiles (K, T, tile, tile, C) in place, each crop separately."""
        crops = len(tiles)
        # draw all changes, used or not, so that enabling one does not affect the others
        flips = rng.random((crops, 3)) < self.flip
        turns = rng.integers(1, 4, crops) * (rng.random(crops) < self.rotate90)
        shifts = rng.uniform(-_LARGEST_SHIFT, _LARGEST_SHIFT, crops) * (rng.random(crops) < self.shift)
        for crop in range(crops):
            tile = tiles[crop]  # (T, tile, tile, C)
            if flips[crop].any():
                tiles[crop] = np.flip(tile, axis=np.flatnonzero(flips[crop]))
            if turns[crop]:
                tiles[crop] = np.rot90(tile, turns[crop], axes=(1, 2))
            if shifts[crop]:
                tiles[crop] = np.clip(tile + np.int16(round(shifts[crop])), 0, 255)


def open_dataset(options: VocoOptions) -> VocoDataset:
    """Open the samples of the prepared sets of `--data`; errors as in `open_index`."""
    return VocoDataset(open_index(options), options)
