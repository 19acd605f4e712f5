"""A small prepared set with organs to segment, and options of tiny segmentation runs, for the tests."""

import dataclasses
from pathlib import Path

import numpy as np

from src.core.targets import ORGANS
from src.data.prepared import PreparedDataset
from src.seg.options import SegOptions
from tests.helpers.voco_files import write_prepared

SIZE, SLICES = 64, 10
_CENTRES = {
    "liver": (28, 16),
    "spleen": (26, 48),
    "left kidney": (42, 44),
    "right kidney": (42, 20),
    "bowel": (52, 32),
}


def draw_organs(series: int, index: int) -> np.ndarray:
    """Label map (SIZE, SIZE): five discs that shrink towards both ends, shifted a little per series."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    shift = np.random.default_rng(series).integers(-2, 3, 2)
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
    radius = 7 - abs(index - SLICES / 2)
    for organ, centre in _CENTRES.items():
        row, column = np.add(centre, shift)
        mask[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = ORGANS[organ]
    return mask


def draw_slice(series: int, index: int) -> np.ndarray:
    """uint8 (SIZE, SIZE, 3): one grey level per organ, under noise."""
    noise = np.random.default_rng((series, index)).normal(0, 8, (SIZE, SIZE, 3))
    grey = 40 + 35 * draw_organs(series, index)[..., None]
    return (grey + noise).clip(0, 255).astype(np.uint8)


def write_organ_set(folder: Path, *, series: int = 6, labelled: int = 3) -> Path:
    """A prepared set of `series` patients, the first `labelled` of them with true masks."""
    write_prepared(folder, draw_slice, series=series, slices=SLICES)
    dataset = PreparedDataset.open(folder)
    for number, row in enumerate(dataset.series.head(labelled).itertuples()):
        masks = [draw_organs(number, index) for index in range(SLICES)]
        dataset.write_masks(row.patient_id, row.series_id, masks)
    return folder


def make_options(data: Path, output: Path, **changes: object) -> SegOptions:
    """Four steps of two small networks with every loss term."""
    options = SegOptions(
        data=(Path(data),),
        output=Path(output),
        validation=0.0,
        steps=4,
        windows=("soft",),
        backbones=("test_efficientnet", "test_resnet"),
        decoders=("linknet", "fpn"),
        batch=2,
        unlabelled_batch=2,
        verification=0.5,
        pseudo=1.0,
        contrast=0.1,
        embedding=8,
        warmup=0.2,
        workers=0,
        log_every=1,
        save_every=1,
        precision="fp32",
    )
    return dataclasses.replace(options, **changes)
