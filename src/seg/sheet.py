"""Contact sheets of organ masks: the slices that show organs, what is true above what was predicted."""

from pathlib import Path

import numpy as np

from src.data.prepared import PreparedDataset, mask_folder, read_slices
from src.data.preview import caption, legend, slice_row
from src.data.selection import even_indices

_LEAST_PX = 192
"""Smaller slices are enlarged to about this side: outlines are a pixel wide."""


def mask_sheet(
    dataset: PreparedDataset, patient_id: str, series_id: str, predicted: Path, columns: int = 8
) -> np.ndarray:
    """Draw a series: uint8 (H, W, 3) in RGB, organs outlined in the first window, `columns` slices wide.

    The slices are spread over those that show an organ in either mask (over all, if none does). The row of
    true masks is left out where the data set has none.

    Args:
        predicted: folder of the series' predicted masks.
    """
    size, count = dataset.size, sum(1 for _ in predicted.glob("*.png"))
    folders = {"predicted": predicted}
    if dataset.has_masks(patient_id, series_id):
        folders = {"true": mask_folder(dataset.folder, patient_id, series_id)} | folders
    shown = np.zeros(count, dtype=bool)
    for folder in folders.values():
        for index in range(count):  # one by one: a series may be long
            shown[index] |= read_slices(folder, [index], size, 1).any()
    within = np.flatnonzero(shown) if shown.any() else np.arange(count)
    indices = within[even_indices(len(within), columns)]
    zoom = max(1, round(_LEAST_PX / size))
    images = _enlarge(dataset.read_slices(patient_id, series_id, indices)[..., 0], zoom)  # (T, H, W)
    masks = {
        name: _enlarge(read_slices(folder, indices, size, 1)[..., 0], zoom)
        for name, folder in folders.items()
    }
    strips = []
    for name, labels in masks.items():
        row = slice_row(images, labels)
        strips += [caption(f"{name}: slices {indices[0]} to {indices[-1]} of {count}", row.shape[1]), row]
    strips.append(legend(strips[-1].shape[1], np.unique(list(masks.values()))))
    return np.concatenate(strips)


def _enlarge(slices: np.ndarray, zoom: int) -> np.ndarray:
    return slices.repeat(zoom, axis=1).repeat(zoom, axis=2)
