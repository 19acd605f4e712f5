"""Masks of one series by a trained pair: chunks of slices to label maps, then cleaned in 3D and measured.

A series in memory (`segment_volume`) and those of a prepared set (`mask_writer.segment_series`) use the same
steps:

    masks = SeriesMasks(store)  # an array in memory, or a folder of PNG files
    for part in chunks:
        predicted = predict_masks(pair, with_neighbours(part, device), part.between)
        masks.add(part.first, predicted.cpu().numpy())
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
from src.data.selection import SliceSelection, neighbour_indices
from src.seg.components import ComponentScan
from src.seg.model import Between, SegmenterPair, SegmenterSpec, predict_masks


class Span(NamedTuple):
    """Consecutive slices of a series whose masks one chunk predicts, and those that its networks see."""

    first: int
    """index of the first slice"""
    stop: int
    """index after the last slice"""
    keys: np.ndarray
    """int64 (N,) slices that the networks see, increasing: the first one and all, or some after it"""


class Chunk(NamedTuple):
    """A span of a series as input of the networks, with the neighbours that their 2.5D input needs."""

    row: int
    """row of the series in its table"""
    first: int
    """index of the first slice to segment"""
    is_last: bool
    """whether the series ends with this chunk"""
    images: Tensor
    """uint8 (U, H, W, C), each slice once; empty after an error"""
    places: Tensor
    """int64 (N, T): for each slice that the networks see, the indices of its neighbours in `images`"""
    between: Between | None
    """how the masks of all M slices follow from those N; None if these are the same"""
    error: str
    """reason why the slices cannot be read; empty if they can"""


def plan_spans(z_mm: np.ndarray, chunk: int, spacing_mm: float = 0.0) -> list[Span]:
    """Divide a series into spans of `chunk` slices that the networks see.

    Args:
        z_mm: (slices,) positions, decreasing from head to feet; not used without `spacing_mm`.
        spacing_mm: about the distance between slices that the networks see; 0: they see all.
    """
    count, keys = len(z_mm), np.arange(len(z_mm))
    if spacing_mm:
        keys = np.union1d(SliceSelection(spacing_mm).choose(z_mm), [count - 1])  # nothing is extrapolated
    spans = []
    for place in range(0, len(keys), chunk):
        inside, following = keys[place : place + chunk], keys[place + chunk : place + chunk + 1]
        stop = int(following[0]) if len(following) else count
        if stop > inside[-1] + 1:  # the slices up to the next span lie between two of these
            inside = np.append(inside, following)
        spans.append(Span(int(keys[place]), stop, inside))
    return spans


def cut_chunk(
    read: Callable[[np.ndarray], np.ndarray], span: Span, z_mm: np.ndarray, slices: int, row: int = 0
) -> Chunk:
    """Read the slices that the networks see and their neighbours, each slice once.

    Args:
        read: returns slices by index, uint8 (U, H, W, C).
        z_mm: (slices,) positions of the series.
        slices: number of adjacent slices in the input of the networks.
    """
    neighbours = neighbour_indices(span.keys, slices, len(z_mm))
    used, places = np.unique(neighbours, return_inverse=True)
    try:
        images, error = read(used), ""
    except UserError as failure:
        images, error = np.empty((0, 1, 1, 1), dtype=np.uint8), str(failure)
    places = torch.from_numpy(places.reshape(neighbours.shape))
    between, is_last = _interpolate(span, z_mm), span.stop == len(z_mm)
    return Chunk(row, span.first, is_last, torch.from_numpy(images), places, between, error)


def _interpolate(span: Span, z_mm: np.ndarray) -> Between | None:
    """Return the weights of the slices above and below each slice of a span, by distance."""
    wanted = np.arange(span.first, span.stop)
    if np.array_equal(wanted, span.keys):
        return None
    above = np.searchsorted(span.keys, wanted, side="right") - 1
    above = np.minimum(above, len(span.keys) - 2)  # the last slice lies below itself
    top_mm, bottom_mm = z_mm[span.keys[above]], z_mm[span.keys[above + 1]]
    share_below = (top_mm - z_mm[wanted]) / (top_mm - bottom_mm)
    return Between(torch.from_numpy(above), torch.from_numpy(share_below.astype(np.float32)))


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
        chunk: number of slices that the networks see per chunk.
        spacing_mm: see `plan_spans`.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        series: pd.DataFrame,
        channels: Sequence[int],
        slices: int,
        chunk: int,
        spacing_mm: float = 0.0,
    ) -> None:
        self.dataset, self.series, self.channels, self.slices = dataset, series, tuple(channels), slices
        self.spacing_mm = spacing_mm
        self.spans = [
            (row, span)
            for row in range(len(series))
            for span in plan_spans(self._positions(row), chunk, spacing_mm)
        ]

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: int) -> Chunk:
        row, span = self.spans[number]
        series = self.series.iloc[row]
        folder = image_folder(self.dataset.folder, series["patient_id"], series["series_id"])

        def read(indices: np.ndarray) -> np.ndarray:
            return read_windows(folder, indices, self.dataset.size, self.channels)

        return cut_chunk(read, span, self._positions(row), self.slices, row)

    def _positions(self, row: int) -> np.ndarray:
        """Return positions in mm; the table of slices is not read if they are not needed."""
        series = self.series.iloc[row]
        if self.spacing_mm:
            return self.dataset.z_mm(series["patient_id"], series["series_id"])
        return -np.arange(series["slices"], dtype=np.float64)


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
    spacing_mm: float = 0.0,
    check: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Predict, clean and measure the organs of a series in memory.

    Args:
        pair: pair on `device`, in evaluation mode.
        images: uint8 (Z, H, W, windows of the spec), head to feet.
        z_mm: (Z,) positions, decreasing.
        pixel_mm: side of a pixel.
        chunk: slices per forward pass.
        spacing_mm: see `plan_spans`.
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
    for span in plan_spans(z_mm, chunk, spacing_mm):
        check()
        part = cut_chunk(images.__getitem__, span, z_mm, spec.slices)
        predicted = predict_masks(pair, with_neighbours(part, device), part.between)
        masks.add(span.first, predicted.cpu().numpy())
    return label_maps, masks.clean(pixel_mm, z_mm).organs(pixel_mm, z_mm)
