"""Small prepared data sets for the tests of pre-training, written as prepare_data.py lays them out."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from src.data.stack import VERSION, image_folder, slice_name, write_png

WINDOWS = ("soft", "organ", "wide")


def write_prepared(
    folder: Path,
    draw_slice: Callable[[int, int], np.ndarray],
    *,
    series: int = 6,
    slices: int = 12,
    windows: tuple[str, ...] = WINDOWS,
) -> Path:
    """Write series, one a patient; `draw_slice(series, slice)` gives uint8 (size, size, channels)."""
    size = draw_slice(0, 0).shape[0]
    ids = [(f"{10 + number}", f"{100 + number}") for number in range(series)]
    for number, (patient_id, series_id) in enumerate(ids):
        images = image_folder(folder, patient_id, series_id)
        images.mkdir(parents=True)
        for index in range(slices):
            write_png(images / slice_name(index), draw_slice(number, index))
    table = pd.DataFrame(ids, columns=["patient_id", "series_id"])
    table.assign(slices=slices, status="ok", reason="").to_csv(folder / "series.csv", index=False)
    description = {"version": VERSION, "size": size, "windows": [{"name": name} for name in windows]}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def draw_anatomy(series: int, index: int) -> np.ndarray:
    """Nine places whose grey levels are those of every patient, under noise of the slice's own."""
    places = np.random.default_rng(7).uniform(30, 220, (3, 3, 3))
    smooth = cv2.resize(places, (48, 48), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng((series, index)).normal(0, 15, smooth.shape)
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def draw_indices(series: int, index: int) -> np.ndarray:
    """The grey levels tell the series, the slice and nothing else."""
    return np.broadcast_to(np.uint8([series, index, 255]), (48, 48, 3)).copy()


def draw_ramps(series: int, index: int) -> np.ndarray:
    """The grey levels tell the row, the column and the series of a pixel."""
    rows, columns = np.mgrid[:48, :48]
    return np.dstack([rows, columns, np.full_like(rows, series)]).astype(np.uint8)
