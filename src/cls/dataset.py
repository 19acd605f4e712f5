"""Slice stacks of a prepared data set with their targets: the samples of the classifier."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.cls.order import Draw
from src.cls.organs import OrganIndex
from src.cls.slice_targets import SliceTargets
from src.cls.stacks import Stack, StackReader, crop_centre, to_channels
from src.cls.views import StackView
from src.core.runtime import sample_rng
from src.core.targets import LABEL_COLUMNS
from src.data.packed import PackedSlices
from src.data.prepared import PreparedDataset
from src.nn.augmentation import Augmentation, StackAugmenter


class StackBatch(NamedTuple):
    """One stack, or a batch of them with a leading dimension B."""

    images: Tensor
    """uint8 (T, C, H, W)"""
    padding: Tensor
    """bool (T,), True after the last slice"""
    targets: Tensor
    """float32 (14,) of `LABEL_COLUMNS`; zeros when predicting"""
    slice_targets: Tensor
    """float32 (T, 8) as `SliceTargets.look_up` returns; (T, 0) if not used"""
    organs: Tensor
    """uint8 (T, H, W): 0, or 1 + index in `ORGAN_GROUPS`; (0, 0, 0) if masks are not used"""
    has_organs: Tensor
    """bool (), whether the series has masks"""


class StackDataset(Dataset[StackBatch]):
    """One stack per series, extracted by `view`.

    Training shifts the slices by one random offset per stack and augments; both depend on the seed and the
    draw alone, so that workers, ranks and resumed runs agree. Prediction is deterministic.

    Args:
        prepared: the prepared data set.
        series: rows with `patient_id, series_id`.
        view: slices, region and channels to use of each series.
        organs: masks and boxes; a series without them is used whole. None if the view needs none.
        labels: the 14 columns, indexed by `patient_id`; None when predicting.
        slice_targets: None if not used.
        with_organs: return organ maps in addition to the view's channels.
        augmentation: None when predicting.
        packed: cache of raw slices, read instead of PNG.
        offset: offset of the slices when predicting, 0..1.
        seed: seed of the random draws.
    """

    def __init__(
        self,
        prepared: PreparedDataset,
        series: pd.DataFrame,
        view: StackView,
        organs: OrganIndex | None = None,
        *,
        labels: pd.DataFrame | None = None,
        slice_targets: SliceTargets | None = None,
        with_organs: bool = False,
        augmentation: Augmentation | None = None,
        packed: PackedSlices | None = None,
        offset: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.reader, self.view = StackReader(prepared, organs, packed), view
        self.keys = list(series[["patient_id", "series_id"]].itertuples(index=False, name=None))
        self.targets = None if labels is None else labels[list(LABEL_COLUMNS)].astype(np.float32)
        self.slice_targets, self.with_organs = slice_targets, with_organs
        self.augmenter = None if augmentation is None else StackAugmenter(view.crop, augmentation)
        self.offset, self.seed = offset, seed

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, drawn: Draw | int) -> StackBatch:
        """Return the stack of a draw; when predicting, of a row."""
        epoch, number = (0, drawn) if isinstance(drawn, int) else drawn
        key, view = self.keys[number % len(self.keys)], self.view
        rng = sample_rng(self.seed, epoch, number)
        offset = self.offset if self.augmenter is None else rng.random()
        stack = self.reader.read(key, view, offset, self.with_organs)
        if self.augmenter is None:
            stack = crop_centre(stack, view)
        else:
            images, maps = self.augmenter(stack.images, rng, stack.organs)
            stack = stack._replace(images=images, organs=maps)
        batch = as_sample(stack, view)
        if self.with_organs:
            maps = torch.from_numpy(np.ascontiguousarray(stack.organs))
            batch = batch._replace(organs=maps, has_organs=torch.tensor(self.reader.has_organs(key)))
        if self.targets is not None:
            batch = batch._replace(targets=torch.from_numpy(self.targets.loc[key[0]].to_numpy().copy()))
        if self.slice_targets is not None:
            targets = torch.from_numpy(self.slice_targets.look_up(key, stack.plan.shown))
            targets[batch.padding] = torch.nan
            batch = batch._replace(slice_targets=targets)
        return batch


def as_sample(stack: Stack, view: StackView) -> StackBatch:
    """Convert a stack to a sample without targets and organ maps."""
    return StackBatch(
        torch.from_numpy(to_channels(stack, view)),
        torch.arange(view.slices) >= stack.plan.filled,
        torch.zeros(len(LABEL_COLUMNS)),
        torch.zeros(view.slices, 0),
        torch.zeros(0, 0, 0, dtype=torch.uint8),
        torch.tensor(False),
    )
