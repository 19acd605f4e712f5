"""Training samples: a slice with its neighbours, augmented once per sub-network, and its label map.

Every random draw is derived from (seed, labelled or not, number), so that a sample is the same in any
process, worker or resumed run.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from src.core.errors import UserError
from src.core.runtime import sample_rng
from src.core.targets import ORGANS
from src.data.packed import PackedSlices
from src.data.prepared import as_channels, image_folder, mask_folder, read_windows, slice_name
from src.data.selection import neighbour_indices
from src.nn.augmentation import AppearanceChange, PlaceChange
from src.seg.options import SegOptions
from src.seg.split import SegData

_MIRRORED = ((ORGANS["left kidney"], ORGANS["right kidney"]),)


class SliceBatch(NamedTuple):
    """One sample, or a batch with a leading B, labelled samples first."""

    strong: Tensor
    """uint8 (2, H, W, slices * windows), the inputs of A and B: one geometry, two appearances"""
    weak: Tensor
    """uint8 (H, W, slices * windows), the same geometry with unchanged appearance"""
    mask: Tensor
    """uint8 (H, W) label map; zeros for an unlabelled slice"""
    is_labelled: Tensor
    """bool ()"""


class Key(NamedTuple):
    """Key of a sample: the `number`-th labelled or unlabelled slice of a run."""

    is_labelled: bool
    number: int


class SliceDataset(Dataset[SliceBatch]):
    """Slices of the labelled and unlabelled series of a run.

    Each round visits every series once (`repeat` times for a repeated set) in a new random order, and takes
    one random slice per visit.
    """

    def __init__(self, data: SegData, options: SegOptions) -> None:
        self.data, self.slices, self.seed = data, options.slices, options.seed
        self.size = options.reduced(data.size)
        repeat = np.array(options.repeat or (1,) * len(data.sets))
        tables = (data.part("unlabelled"), data.part("labelled"))
        self.parts = tuple(table.loc[table.index.repeat(repeat[table["set"]])] for table in tables)
        self.packed = ()
        if options.cache is not None:
            self.packed = tuple(PackedSlices(each, data.window_names, options.cache) for each in data.sets)
        self.place = PlaceChange(options.flip, options.affine, _MIRRORED)
        self.appearance = AppearanceChange(options.appearance) if options.appearance else None

    def __getitem__(self, key: Key) -> SliceBatch:
        table = self.parts[key.is_labelled]
        series = table.iloc[self.series_of(key)]
        rng = sample_rng(self.seed, int(key.is_labelled), key.number)
        index = int(rng.integers(series["slices"]))
        dataset, windows = self.data.sets[series["set"]], self.data.windows[series["set"]]
        key_of_series = (series["patient_id"], series["series_id"])
        neighbours = neighbour_indices(np.array([index]), self.slices, int(series["slices"]))[0]
        if self.packed:
            images = self.packed[series["set"]].read(key_of_series, neighbours)  # (T, H, W, C)
        else:
            folder = image_folder(dataset.folder, *key_of_series)
            images = read_windows(folder, neighbours, dataset.size, windows)
        mask = np.zeros(images.shape[1:3], dtype=np.uint8)
        if key.is_labelled:
            mask = dataset.read_masks(series["patient_id"], series["series_id"], [index])[0]
            if mask.max() > max(ORGANS.values()):
                path = mask_folder(dataset.folder, series["patient_id"], series["series_id"])
                raise UserError(
                    f"{path / slice_name(index)} has the label {mask.max()}, the last organ is "
                    f"{max(ORGANS.values())}: prepare the segmentations again"
                )
        images, mask = self._reduce(images, mask)
        images, mask = self.place(images, mask, rng)
        strong = [as_channels(self.appearance(images, rng) if self.appearance else images) for _ in "ab"]
        return SliceBatch(
            torch.from_numpy(np.stack(strong)),
            torch.from_numpy(as_channels(images)),
            torch.from_numpy(mask),
            torch.tensor(key.is_labelled),
        )

    def _reduce(self, images: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reduce slices (T, H, W, C) and the mask (H, W) of one to the size that the networks see."""
        if self.size == mask.shape[0]:
            return images, mask
        side = (self.size, self.size)
        reduced = [cv2.resize(image, side, interpolation=cv2.INTER_AREA) for image in images]
        images = np.stack(reduced).reshape(len(images), *side, images.shape[3])  # cv2 drops a single channel
        return images, cv2.resize(mask, side, interpolation=cv2.INTER_NEAREST)

    def series_of(self, key: Key) -> int:
        """Return the row, in the table of its part, of a sample's series."""
        count = len(self.parts[key.is_labelled])
        round_, place = divmod(key.number, count)
        return int(sample_rng(self.seed, 2 + key.is_labelled, round_).permutation(count)[place])

    def name_series(self, keys: list[Key]) -> str:
        """Return the patients and series of some samples, for messages."""
        rows = pd.concat([self.parts[key.is_labelled].iloc[[self.series_of(key)]] for key in keys])
        return ", ".join(dict.fromkeys(f"{row.patient_id}/{row.series_id}" for row in rows.itertuples()))


class SliceOrder(Sampler[list[Key]]):
    """Sampler of the keys of every step for one process, labelled ones first.

    Args:
        rank: index of this process among `world` processes.

    Raises:
        UserError: a batch cannot be divided evenly among the processes.
    """

    def __init__(self, options: SegOptions, first_step: int, rank: int = 0, world: int = 1) -> None:
        unlabelled = options.unlabelled_batch if options.uses_unlabelled else 0
        self.batches = {True: options.batch, False: unlabelled}
        for flag, batch in (("--batch", options.batch), ("--unlabelled-batch", unlabelled)):
            if batch % world:
                raise UserError(
                    f"option {flag} {batch} must be a multiple of the number of processes, {world}"
                )
        self.steps = range(first_step, options.steps)
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Key]]:
        return (self.share(step) for step in self.steps)

    def share(self, step: int) -> list[Key]:
        """Return the keys of this process at a step."""
        keys = []
        for is_labelled, batch in self.batches.items():
            share = range(self.rank * batch // self.world, (self.rank + 1) * batch // self.world)
            keys += [Key(is_labelled, step * batch + place) for place in share]
        return keys
