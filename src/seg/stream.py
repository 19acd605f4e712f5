"""Slices of many series as one stream of chunks: series after series, each slice read once, errors told."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.core.errors import UserError
from src.data.prepared import PreparedDataset, image_folder, read_windows
from src.data.selection import neighbour_indices
from src.nn.loading import StackLoader


class Chunk(NamedTuple):
    """Some consecutive slices of a series, with the neighbours that their 2.5D input needs."""

    row: int
    """of the series in the table"""
    first: int
    """index of the first slice to segment"""
    is_last: bool
    """whether the series ends with this chunk"""
    images: Tensor
    """uint8 (U, H, W, C), each slice once; empty after an error"""
    places: Tensor
    """int64 (N, T): of each slice to segment, the places of its neighbours in `images`"""
    error: str
    """why the slices cannot be read; else empty"""


@dataclass(frozen=True)
class _Span:
    row: int
    first: int
    stop: int


class SliceStream(Dataset[Chunk]):
    """The chunks of all series of a table, in order; no chunk holds slices of two series.

    Args:
        series: rows with patient_id, series_id and slices.
        windows: places of the wanted windows in the stored images.
        slices: adjacent slices that the networks see together.
        chunk: slices to segment in each.
    """

    def __init__(
        self, dataset: PreparedDataset, series: pd.DataFrame, windows: Sequence[int], slices: int, chunk: int
    ) -> None:
        self.dataset, self.series, self.windows, self.slices = dataset, series, tuple(windows), slices
        self.spans = [
            _Span(row, first, min(first + chunk, count))
            for row, count in enumerate(series["slices"])
            for first in range(0, count, chunk)
        ]

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: int) -> Chunk:
        span, series = self.spans[number], self.series.iloc[self.spans[number].row]
        neighbours = neighbour_indices(np.arange(span.first, span.stop), self.slices, int(series["slices"]))
        used, places = np.unique(neighbours, return_inverse=True)
        folder = image_folder(self.dataset.folder, series["patient_id"], series["series_id"])
        is_last = span.stop == series["slices"]
        try:
            images, error = read_windows(folder, used, self.dataset.size, self.windows), ""
        except UserError as failure:
            images, error = np.empty((0, 1, 1, 1), dtype=np.uint8), str(failure)
        places = torch.from_numpy(places.reshape(neighbours.shape))
        return Chunk(span.row, span.first, is_last, torch.from_numpy(images), places, error)

    def read(self, workers: int) -> Iterator[Chunk]:
        """All chunks in order; `workers` processes read ahead, 0 reads in this one."""
        return iter(StackLoader(self, workers, batch_size=None))


def with_neighbours(chunk: Chunk, device: torch.device) -> Tensor:
    """The networks' input, uint8 (N, H, W, T * C), of a chunk: gathered where the model is."""
    images = chunk.images.to(device, non_blocking=True)[chunk.places.to(device)]  # (N, T, H, W, C)
    return images.permute(0, 2, 3, 1, 4).flatten(3)
