"""Volumes for pre-training: a random slab of a prepared series, resized to the canvas and cut into tiles.

Only the slices that are used are read. Every draw follows from (seed, epoch, volume), so that a sample is the
same in whatever process, worker or resumed run it is made.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from src.core.errors import UserError
from src.core.runtime import sample_rng
from src.data.stack import PreparedDataset, even_indices
from src.voco.crops import CropGrid, cut_crops, overlap_labels


class VolumeSample(NamedTuple):
    """One volume, or a batch of them with a leading B."""

    tiles: Tensor
    """uint8 (R + N, T, crop, crop, C): R random crops, then N base crops, over T slices."""
    label: Tensor
    """float32 (R, N) position labels."""
    volume: Tensor
    """int64 (), row of `volume_table`."""


def volume_table(sets: Sequence[PreparedDataset]) -> pd.DataFrame:
    """Every usable series of several prepared sets: columns set (its place in `sets`), patient_id, series_id,
    slices.

    The order is that of the sets and of their sorted series, which the draws of a run rely on.
    """
    columns = ["patient_id", "series_id", "slices"]
    tables = [prepared.series[columns].assign(set=number) for number, prepared in enumerate(sets)]
    return pd.concat(tables, ignore_index=True)[["set", *columns]]


class VocoDataset(Dataset[VolumeSample]):
    """Samples of `volume_table(sets)`, asked for by `(epoch, volume)`.

    The stacks are cropped to the body when they are prepared, which is the foreground crop of the published
    recipe; cropping each slab again would give the patients' canvases different scales.

    Raises:
        UserError: a set lacks one of `windows`.
    """

    def __init__(
        self,
        sets: Sequence[PreparedDataset],
        *,
        windows: Sequence[str],
        grid: CropGrid,
        random_crops: int,
        slab_slices: int,
        slices: int,
        seed: int,
    ) -> None:
        for prepared in sets:
            for window in windows:
                if window not in prepared.windows:
                    raise UserError(
                        f"{prepared.folder} has no window {window}; it has {' '.join(prepared.windows)} "
                        "(choose with --windows)"
                    )
        self.sets = list(sets)
        self.channels = [[prepared.windows.index(window) for window in windows] for prepared in sets]
        self.volumes = volume_table(sets)
        self.grid = grid
        self.random_crops = random_crops
        self.slab_slices = slab_slices
        self.slices = slices
        self.seed = seed

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, key: tuple[int, int]) -> VolumeSample:
        epoch, volume = key
        rng = sample_rng(self.seed, epoch, volume)
        images = self._read_slab(volume, rng)  # (T, canvas, canvas, C)
        bases = self.grid.base_starts()
        randoms = self.grid.random_starts(rng, self.random_crops)
        tiles = cut_crops(images, np.concatenate([randoms, bases]), self.grid.crop)
        label = overlap_labels(randoms, bases, self.grid.crop)
        return VolumeSample(torch.from_numpy(tiles), torch.from_numpy(label), torch.tensor(volume))

    def _read_slab(self, volume: int, rng: np.random.Generator) -> np.ndarray:
        row = self.volumes.iloc[volume]
        depth = min(self.slab_slices, int(row["slices"]))
        first = rng.integers(0, int(row["slices"]) - depth + 1)
        indices = first + even_indices(depth, self.slices)
        unique, place = np.unique(
            indices, return_inverse=True
        )  # a short series repeats slices: decode them once
        images = self.sets[row["set"]].read_slices(row["patient_id"], row["series_id"], unique)
        images = images[..., self.channels[row["set"]]]
        rows, columns = self.grid.canvas
        # INTER_AREA averages what it shrinks; to enlarge, it would repeat pixels
        method = cv2.INTER_AREA if rows < images.shape[1] else cv2.INTER_LINEAR
        resized = np.stack([cv2.resize(image, (columns, rows), interpolation=method) for image in images])
        return resized.reshape(len(unique), rows, columns, -1)[place]  # cv2 drops a single channel


class VolumeOrder(Sampler[list[tuple[int, int]]]):
    """Batches of `(epoch, volume)` for the steps `first_step <= step < steps` of a run.

    Each epoch is a new random order, drawn from (seed, epoch), so that the pairs of the inter-volume loss
    change; what is left over after the last full batch is dropped, so that no batch holds a volume twice.

    Raises:
        UserError: fewer volumes than a batch holds.
    """

    def __init__(self, volumes: int, batch: int, *, seed: int, first_step: int, steps: int) -> None:
        if volumes < batch:
            raise UserError(
                f"{volumes} usable series are fewer than a batch of {batch}; prepare more, or lower --batch"
            )
        self.volumes, self.batch, self.seed = volumes, batch, seed
        self.first_step, self.steps = first_step, steps

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        ordered_epoch = -1
        for step in range(self.first_step, self.steps):
            epoch, place = divmod(step, self.volumes // self.batch)
            if epoch != ordered_epoch:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.volumes)
                ordered_epoch = epoch
            yield [(epoch, int(volume)) for volume in order[place * self.batch : (place + 1) * self.batch]]
