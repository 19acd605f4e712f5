"""A prepared data set on disk: 8-bit slice stacks as PNG and their tables, with functions to read both.

    dataset.json                               windows, size, slice policy, source, version
    series.csv                                 one row per series of the source
    rejected.csv                               one row per file that was excluded from its series
    images/<patient_id>/<series_id>/0000.png   channel k = window k; with slices.csv and series.json
    masks/<patient_id>/<series_id>/0000.png    label map, where there is a segmentation

Slices run from head to feet, the patient's left is on the image's right, the front is up.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.core.files import read_exact, whole_folder
from src.data.png import read_png, write_png

VERSION = 1
"""Version of the layout above; other versions are refused."""

USABLE = ("ok", "doubtful")
"""Status of series that have images. Those of `doubtful` ones may be wrong, and `reason` says why."""

TEXT_COLUMNS = MappingProxyType({"patient_id": str, "series_id": str, "reason": str})


def as_channels(images: np.ndarray) -> np.ndarray:
    """Neighbouring slices (..., T, H, W, C) -> (..., H, W, T * C), the windows of each slice together."""
    moved = np.moveaxis(images, -4, -2)  # (..., H, W, T, C)
    return moved.reshape(*moved.shape[:-2], -1)


def slice_name(index: int) -> str:
    return f"{index:04d}.png"


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared data set, open for reading; see `open`."""

    folder: Path
    windows: tuple[str, ...]
    size: int
    series: pd.DataFrame
    """Usable series, sorted by patient_id and series_id (both text)."""
    all_series: pd.DataFrame
    """Every series of the source, with `status` and `reason`."""
    slice_policy: Any = "all"
    """Selection of slices in preparation, in the form of `SliceSelection.describe`."""

    @classmethod
    def open(cls, folder: str | Path) -> "PreparedDataset":
        """Open the folder that `prepare_data.py` wrote.

        Raises:
            UserError: no such folder, not a prepared data set, an unfinished one, or of another version.
        """
        folder = Path(folder)
        description = read_description(folder)
        all_series, series = read_series_tables(folder)
        windows = tuple(window["name"] for window in description["windows"])
        policy = description.get("slices", "all")
        return cls(folder, windows, description["size"], series, all_series, policy)

    def read_slices(self, patient_id: str, series_id: str, indices: Sequence[int]) -> np.ndarray:
        """Read slices by index, uint8 (T, H, W, C) with one channel per window."""
        folder = image_folder(self.folder, patient_id, series_id)
        return read_slices(folder, indices, self.size, len(self.windows))

    @cached_property
    def slice_counts(self) -> dict[tuple[str, str], int]:
        """Number of slices of every usable series, by (patient_id, series_id)."""
        keys = zip(self.series["patient_id"], self.series["series_id"], strict=True)
        return dict(zip(keys, self.series["slices"].tolist(), strict=True))

    def channels(self, windows: Sequence[str]) -> tuple[int, ...]:
        """Return the channel of each of these windows in the stored images.

        Raises:
            UserError: the data set was prepared without one of them.
        """
        return find_channels(self.folder, self.windows, windows)

    def read_slice_table(self, patient_id: str, series_id: str) -> pd.DataFrame:
        """Read one row per slice: index, instance_number, z_mm (head positive), source (file name)."""
        folder = image_folder(self.folder, patient_id, series_id)
        return read_exact(folder / "slices.csv", dtype={"source": str})

    def z_mm(self, patient_id: str, series_id: str) -> np.ndarray:
        """Positions of the slices of a usable series, float64 (slices,), decreasing from head to feet.

        These are the positions of the prepared slices; the spacing in series.csv refers to the source, of
        which preparation may have kept only some slices.

        Raises:
            UserError: slices.csv is missing, damaged, or does not match the series.
        """
        key = (patient_id, series_id)
        return read_z_mm(image_folder(self.folder, *key), self.slice_counts[key])

    def has_masks(self, patient_id: str, series_id: str) -> bool:
        return mask_folder(self.folder, patient_id, series_id).is_dir()

    def read_masks(self, patient_id: str, series_id: str, indices: Sequence[int]) -> np.ndarray:
        """Read label maps by slice index, uint8 (T, H, W), with the labels of `ORGANS`."""
        return read_slices(mask_folder(self.folder, patient_id, series_id), indices, self.size, 1)[..., 0]

    def write_masks(self, patient_id: str, series_id: str, masks: Iterable[np.ndarray]) -> None:
        """Write one label map (H, W) uint8 for every slice of a series, replacing earlier ones."""
        write_masks(mask_folder(self.folder, patient_id, series_id), masks)


def image_folder(dataset: Path, patient_id: str, series_id: str) -> Path:
    return dataset / "images" / patient_id / series_id


def mask_folder(dataset: Path, patient_id: str, series_id: str) -> Path:
    return dataset / "masks" / patient_id / series_id


def find_channels(folder: Path, prepared: Sequence[str], windows: Sequence[str]) -> tuple[int, ...]:
    """Return the index of each of `windows` among the `prepared` ones of the data set in `folder`.

    Raises:
        UserError: a window was not prepared.
    """
    for name in windows:
        if name not in prepared:
            raise UserError(
                f"{folder} has no window {name}; it has {' '.join(prepared)}: choose among them, or prepare "
                "the data set with that window"
            )
    return tuple(prepared.index(name) for name in windows)


def read_z_mm(folder: Path, slices: int) -> np.ndarray:
    """Read the positions of the `slices` slices in a series' folder. See `PreparedDataset.z_mm`."""
    path = folder / "slices.csv"
    try:
        z_mm = read_exact(path, usecols=["z_mm"], dtype=float)["z_mm"].to_numpy()
    except (OSError, ValueError):
        raise UserError(f"{path} is missing or damaged; prepare the data set again") from None
    if len(z_mm) != slices or not (np.diff(z_mm) < 0).all():
        raise UserError(f"{path} does not fit the {slices} slices of series.csv; prepare the data set again")
    return z_mm


def read_slices(folder: Path, indices: Sequence[int], size: int, channels: int) -> np.ndarray:
    """Read slices of a series' folder, uint8 (T, size, size, channels)."""
    return read_windows(folder, indices, size, range(channels))


def read_windows(folder: Path, indices: Sequence[int], size: int, windows: Sequence[int]) -> np.ndarray:
    """Read some channels of slices of a series' folder, uint8 (T, size, size, len(windows)).

    Raises:
        UserError: a slice is missing, damaged, or of another size or number of windows.
    """
    stack = np.empty((len(indices), size, size, len(windows)), dtype=np.uint8)
    for row, index in enumerate(indices):
        path = folder / slice_name(index)
        image = read_png(path)
        channels = 1 if image.ndim == 2 else image.shape[2]
        if image.shape[:2] != (size, size) or image.dtype != np.uint8 or max(windows) >= channels:
            raise UserError(f"{path} does not fit dataset.json; prepare the data set again")
        # copies only the requested channels, directly to their positions
        pairs = [place for k, window in enumerate(windows) for place in (window, k)]
        cv2.mixChannels([image], [stack[row]], pairs)
    return stack


def write_masks(folder: Path, masks: Iterable[np.ndarray]) -> None:
    """Write label maps (H, W) uint8, head to feet, as the complete folder of a series."""
    with whole_folder(folder) as partial:
        for index, mask in enumerate(masks):
            write_png(partial / slice_name(index), mask)


def read_series_tables(
    folder: Path, columns: Sequence[str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read `series.csv` of a prepared data set: every series of the source, and the usable ones.

    Args:
        columns: columns to read, including `slices` and `status`; all by default.

    Raises:
        UserError: preparation was not finished, or the file is damaged.
    """
    path = folder / "series.csv"
    if not path.is_file():
        raise UserError(f"{folder} is not completely prepared; run prepare_data.py on it again")
    try:
        every = read_exact(path, dtype=dict(TEXT_COLUMNS), usecols=columns)
        usable = every[every["status"].isin(USABLE)].reset_index(drop=True)
        usable["slices"] = usable["slices"].astype("int64")
    except (KeyError, ValueError):
        raise UserError(f"{path} is damaged; delete it and run prepare_data.py again") from None
    return every, usable


def read_description(folder: Path) -> dict:
    """Read `dataset.json` of a prepared data set.

    Raises:
        UserError: no such folder, not a prepared data set, or of another version.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; make it with prepare_data.py")
    try:
        description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        version = description["version"]
        _ = description["size"], [window["name"] for window in description["windows"]]
    except FileNotFoundError:
        raise UserError(f"{folder} is not a prepared data set (no dataset.json)") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"{folder / 'dataset.json'} is damaged; prepare the data set again") from None
    if version != VERSION:
        raise UserError(f"{folder} has layout version {version}, not {VERSION}; prepare the data set again")
    return description
