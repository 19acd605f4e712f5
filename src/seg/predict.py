"""Masks of one series by a trained pair: chunks of slices to label maps, then cleaned in 3D and measured.

A series in memory (`segment_volume`) and those of a prepared set (`mask_writer.segment_series`) use the same
steps:

    masks = SeriesMasks(store)  # an array in memory, or a folder of PNG files
    for part in chunks:
        masks.add(part.first, predict_masks(pair, with_neighbours(part, device)).cpu().numpy())
    measures = masks.clean(pixel_mm, z_mm)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.core.errors import UserError
from src.data.organ_tables import OrganMeasures, voxel_volumes_ml
from src.data.prepared import PreparedDataset, image_folder, read_windows
from src.data.selection import neighbour_indices
from src.seg.components import ComponentScan
from src.seg.model import SegmenterPair, SegmenterSpec, predict_masks


class Chunk(NamedTuple):
    """Consecutive slices of a series, with the neighbours that their 2.5D input needs."""

    row: int
    """row of the series in its table"""
    first: int
    """index of the first slice to segment"""
    is_last: bool
    """whether the series ends with this chunk"""
    images: Tensor
    """uint8 (U, H, W, C), each slice once; empty after an error"""
    places: Tensor
    """int64 (N, T): for each slice to segment, the indices of its neighbours in `images`"""
    error: str
    """reason why the slices cannot be read; empty if they can"""


def cut_chunk(
    read: Callable[[np.ndarray], np.ndarray], span: range, count: int, slices: int, row: int = 0
) -> Chunk:
    """Read consecutive slices and their neighbours, each slice once.

    Args:
        read: returns slices by index, uint8 (U, H, W, C).
        span: indices of the slices to segment.
        count: number of slices in the series.
        slices: number of adjacent slices in the input of the networks.
    """
    neighbours = neighbour_indices(np.array(span), slices, count)
    used, places = np.unique(neighbours, return_inverse=True)
    try:
        images, error = read(used), ""
    except UserError as failure:
        images, error = np.empty((0, 1, 1, 1), dtype=np.uint8), str(failure)
    places = torch.from_numpy(places.reshape(neighbours.shape))
    return Chunk(row, span.start, span.stop == count, torch.from_numpy(images), places, error)


def with_neighbours(chunk: Chunk, device: torch.device) -> Tensor:
    """Return a chunk as network input, uint8 (N, H, W, T * C); gathered on the device."""
    images = chunk.images.to(device, non_blocking=True)[chunk.places.to(device)]  # (N, T, H, W, C)
    return images.permute(0, 2, 3, 1, 4).flatten(3)


class SliceStream(Dataset[Chunk]):
    """The chunks of all series of a table, in order; a chunk never spans two series.

    A slice that cannot be read gives a chunk with an `error`.

    Args:
        series: rows with patient_id, series_id and slices.
        channels: channels of the windows in the stored images.
        slices: number of adjacent slices in the input of the networks.
        chunk: number of slices to segment per chunk.
    """

    def __init__(
        self, dataset: PreparedDataset, series: pd.DataFrame, channels: Sequence[int], slices: int, chunk: int
    ) -> None:
        self.dataset, self.series, self.channels, self.slices = dataset, series, tuple(channels), slices
        self.spans = [
            (row, range(first, min(first + chunk, count)))
            for row, count in enumerate(series["slices"])
            for first in range(0, count, chunk)
        ]

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: int) -> Chunk:
        row, span = self.spans[number]
        series = self.series.iloc[row]
        folder = image_folder(self.dataset.folder, series["patient_id"], series["series_id"])

        def read(indices: np.ndarray) -> np.ndarray:
            return read_windows(folder, indices, self.dataset.size, self.channels)

        return cut_chunk(read, span, int(series["slices"]), self.slices, row)


class MaskStore(Protocol):
    """Label maps (H, W) uint8 by slice index, such as an array (Z, H, W)."""

    def __getitem__(self, index: int) -> np.ndarray: ...

    def __setitem__(self, index: int, mask: np.ndarray) -> None: ...


class SeriesMasks:
    """Masks of one series, in two passes: predicted masks are added, then all are cleaned and measured."""

    def __init__(self, store: MaskStore) -> None:
        self._store, self._scan = store, ComponentScan()

    def add(self, first: int, masks: np.ndarray) -> None:
        """Add the masks (N, H, W) of the next slices, the first of which has index `first`."""
        for index, mask in enumerate(masks, first):
            self._scan.add(mask)
            self._store[index] = mask

    def clean(self, pixel_mm: float, z_mm: np.ndarray, single_slice_mm: float | None = None) -> OrganMeasures:
        """Remove specks and label kidneys by side, in all slices.

        Args:
            pixel_mm: side of a pixel.
            z_mm: (Z,) positions, decreasing from head to feet.
            single_slice_mm: slice thickness of a series with one slice.

        Raises:
            UserError: the voxel size is unknown.
        """
        voxel_ml = voxel_volumes_ml(pixel_mm, z_mm, single_slice_mm)
        if not (voxel_ml > 0).all():  # also rejects NaN
            raise UserError("its voxels have no known size: a single slice, or no pixel_mm in series.csv")
        clean_up, measures = self._scan.clean_up(voxel_ml), OrganMeasures()
        for index in range(len(z_mm)):
            mask = self._store[index]
            cleaned = clean_up.apply(mask, index)
            if not np.array_equal(cleaned, mask):
                self._store[index] = cleaned
            measures.add(cleaned)
        return measures


def segment_volume(
    pair: SegmenterPair,
    spec: SegmenterSpec,
    images: np.ndarray,
    z_mm: np.ndarray,
    pixel_mm: float,
    *,
    device: torch.device,
    chunk: int = 16,
    check: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Predict, clean and measure the organs of a series in memory.

    Args:
        pair: pair on `device`, in evaluation mode.
        images: uint8 (Z, H, W, windows of the spec), head to feet.
        z_mm: (Z,) positions, decreasing.
        pixel_mm: side of a pixel.
        chunk: slices per forward pass.
        check: called before each chunk; an exception from it ends the work.

    Returns:
        Label maps uint8 (Z, H, W), and one row per organ as in `OrganMeasures.organs`.

    Raises:
        UserError: a single slice, whose voxel size is unknown.
        FloatingPointError: probabilities that are not finite.
    """
    count = len(z_mm)
    if count < 2:
        raise UserError("organs of a single slice have no volume to judge them by")
    label_maps = np.empty(images.shape[:3], dtype=np.uint8)
    masks = SeriesMasks(label_maps)
    for first in range(0, count, chunk):
        check()
        part = cut_chunk(images.__getitem__, range(first, min(first + chunk, count)), count, spec.slices)
        masks.add(first, predict_masks(pair, with_neighbours(part, device)).cpu().numpy())
    return label_maps, masks.clean(pixel_mm, z_mm).organs(pixel_mm, z_mm)
