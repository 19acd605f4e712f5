"""Small prepared data sets for the tests of pre-training, written as prepare_data.py lays them out."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from src.data.png import write_png
from src.data.prepared import VERSION, image_folder, slice_name

WINDOWS = ("soft", "organ", "wide")


def write_prepared(
    folder: Path,
    draw_slice: Callable[[int, int], np.ndarray],
    *,
    series: int = 6,
    slices: int = 12,
    windows: tuple[str, ...] = WINDOWS,
    slice_mm: float = 5.0,
    pixel_mm: float = 2.0,
) -> Path:
    """Write series, one per patient; `draw_slice(series, slice)` gives uint8 (size, size, channels)."""
    size = draw_slice(0, 0).shape[0]
    ids = [(f"{10 + number}", f"{100 + number}") for number in range(series)]
    for number, (patient_id, series_id) in enumerate(ids):
        images = image_folder(folder, patient_id, series_id)
        images.mkdir(parents=True)
        for index in range(slices):
            write_png(images / slice_name(index), draw_slice(number, index))
        write_slice_table(images, -slice_mm * np.arange(slices))
    table = pd.DataFrame(ids, columns=["patient_id", "series_id"])
    table = table.assign(
        slices=slices, spacing_z_mm=slice_mm, pixel_mm=pixel_mm, masks=False, status="ok", reason=""
    )
    table.to_csv(folder / "series.csv", index=False)
    description = {"version": VERSION, "size": size, "windows": [{"name": name} for name in windows]}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def write_slice_table(images: Path, z_mm: np.ndarray) -> None:
    """slices.csv of a series: positions of its slices, head positive."""
    index = np.arange(len(z_mm))
    table = pd.DataFrame({"index": index, "instance_number": index + 1, "z_mm": z_mm, "source": index})
    table.to_csv(images / "slices.csv", index=False)


def draw_anatomy(series: int, index: int) -> np.ndarray:
    """Nine places with the same grey levels in every patient, under noise that differs between slices."""
    places = np.random.default_rng(7).uniform(30, 220, (3, 3, 3))
    smooth = cv2.resize(places, (48, 48), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng((series, index)).normal(0, 15, smooth.shape)
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def draw_indices(series: int, index: int) -> np.ndarray:
    """The grey levels are the number of the series and the index of the slice."""
    return np.broadcast_to(np.uint8([series, index, 255]), (48, 48, 3)).copy()


def draw_places(series: int, index: int) -> np.ndarray:
    """The grey levels are the row, the column and the slice of a pixel."""
    rows, columns = np.mgrid[:48, :48]
    return np.dstack([rows, columns, np.full_like(rows, index)]).astype(np.uint8)


def draw_noise(series: int, index: int) -> np.ndarray:
    """Random grey levels, different in every pixel, slice and series."""
    return np.random.default_rng((series, index)).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def draw_ramps(series: int, index: int) -> np.ndarray:
    """The grey levels are the row, the column and the series of a pixel."""
    rows, columns = np.mgrid[:48, :48]
    return np.dstack([rows, columns, np.full_like(rows, series)]).astype(np.uint8)
