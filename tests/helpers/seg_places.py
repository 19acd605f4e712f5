"""A prepared set whose pixels encode their place, with kidney masks, for tests of segmentation samples."""

from pathlib import Path

import numpy as np

from src.core.targets import ORGANS
from src.data.prepared import PreparedDataset
from src.seg.options import SegOptions
from tests.helpers.voco_files import WINDOWS, draw_places, write_prepared

LEFT, RIGHT = ORGANS["left kidney"], ORGANS["right kidney"]


def draw_mask(index: int) -> np.ndarray:
    """The left kidney on the image's right, the right one on its left, in a row of its own per slice."""
    mask = np.zeros((48, 48), dtype=np.uint8)
    mask[index + 10, 30:40], mask[index + 10, 8:18] = LEFT, RIGHT
    return mask


def write_places(folder: Path, *, series: int = 6, labelled: int = 4) -> Path:
    """A prepared set of `series` patients with one series each, the first `labelled` of them with masks."""
    write_prepared(folder, draw_places, series=series)
    dataset = PreparedDataset.open(folder)
    for row in dataset.series.head(labelled).itertuples():
        dataset.write_masks(row.patient_id, row.series_id, [draw_mask(index) for index in range(12)])
    return folder


def make_options(*sets: Path, **changes: object) -> SegOptions:
    """Options without augmentation and without validation patients."""
    plain = {"windows": WINDOWS, "affine": 0.0, "appearance": 0.0, "validation": 0.0}
    return SegOptions(data=tuple(map(str, sets)), output="unused", **(plain | changes))
