"""Series of a prepared set with their patients' labels, as the classifier trains and predicts on them."""

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from src.core.runtime import sample_rng
from src.core.targets import COLUMNS
from src.data.stack import PreparedDataset, even_indices
from src.nn.augmentation import Augmentation, StackAugmenter, centre_crop


class SeriesDataset(Dataset):
    """Evenly spaced slices of each series.

    Training jitters the slices within their intervals, one draw a stack, and augments; both follow from
    (seed, epoch, index) alone, so that workers, ranks and resumed runs draw the same. Prediction is fixed.

    Args:
        prepared: the prepared data set.
        series: rows with `patient_id` and `series_id`.
        labels: one row a patient with the 13 columns, indexed by `patient_id`; None when predicting.
        augmentation: None when predicting.
    """

    def __init__(
        self,
        prepared: PreparedDataset,
        series: pd.DataFrame,
        labels: pd.DataFrame | None,
        slices: int,
        crop: int,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        epoch: int = 0,
    ):
        self.prepared = prepared
        self.rows = list(series[["patient_id", "series_id", "slices"]].itertuples(index=False))
        self.targets = None if labels is None else labels[list(COLUMNS)].astype(np.float32)
        self.slices, self.crop = slices, crop
        self.augmenter = None if augmentation is None else StackAugmenter(crop, augmentation)
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 images (T, C, H, W) and float32 targets (13,), zeros when there are no labels."""
        row = self.rows[index]
        if self.augmenter is None:
            indices = even_indices(row.slices, self.slices)
            images = centre_crop(self.prepared.read_slices(row.patient_id, row.series_id, indices), self.crop)
        else:
            rng = sample_rng(self.seed, self.epoch, index)
            indices = jittered_indices(row.slices, self.slices, rng)
            images = self.augmenter(self.prepared.read_slices(row.patient_id, row.series_id, indices), rng)
        targets = (
            np.zeros(len(COLUMNS), np.float32)
            if self.targets is None
            else self.targets.loc[row.patient_id].to_numpy()
        )
        return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(targets.copy())


def jittered_indices(n_slices: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Like `even_indices`, but all slices moved by one random share of their distance."""
    return ((np.arange(count) + rng.random()) * n_slices / count).astype(np.int64)
