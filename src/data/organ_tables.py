"""Areas, volumes and positions of the organs of a series, measured from its label maps."""

from array import array
from collections import defaultdict
from types import MappingProxyType
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from src.core.targets import ORGANS

AREA_COLUMNS = MappingProxyType({organ: f"{organ.replace(' ', '_')}_mm2" for organ in ORGANS})
"""Column of each organ in the table of areas."""

ORGAN_TYPES = MappingProxyType(
    {
        "organ": "str",
        "volume_ml": "float64",
        "first_slice": "Int64",
        "last_slice": "Int64",
        "top_z_mm": "float64",
        "bottom_z_mm": "float64",
        "left": "Int64",
        "top": "Int64",
        "right": "Int64",
        "bottom": "Int64",
    }
)
"""Columns and types of the table of organs; without this `dtype`, `read_csv` converts boxes to floats."""


MAX_GAP_MM = 20.0
"""An organ that is absent from slices over more than this distance has another run of slices after it."""
MIN_RUN = 0.1
"""A run with less than this share of the volume of the organ's largest run lies outside of its box."""
TAIL = 0.005
"""Share of the organ's volume beyond either end of its box, along each axis. Masks of a network have specks:
bowel in the chest, or a thread of liver across the body, would stretch a box around the outermost pixels."""


def slice_thickness_mm(z_mm: np.ndarray, single_slice_mm: float | None = None) -> np.ndarray:
    """Thickness of each slice, (slices,): half the distance to each of its neighbours.

    The first and the last slice extend as far outwards as inwards.

    Args:
        z_mm: (slices,) positions, decreasing from head to feet.
        single_slice_mm: thickness used for a series with one slice, which has no distances.

    Raises:
        ValueError: positions that do not decrease, or one slice without `single_slice_mm`.
    """
    z_mm = np.asarray(z_mm, dtype=np.float64)
    distances = -np.diff(z_mm)
    if not (distances > 0).all():
        raise ValueError("positions of slices must fall from head to feet")
    if len(z_mm) == 1:
        if single_slice_mm is None:
            raise ValueError("the thickness of a single slice is not known from its position")
        return np.array([single_slice_mm], dtype=np.float64)
    return (np.append(distances[:1], distances) + np.append(distances, distances[-1:])) / 2


def voxel_volumes_ml(pixel_mm: float, z_mm: np.ndarray, single_slice_mm: float | None = None) -> np.ndarray:
    """Voxel volume of each slice, (slices,). Arguments and errors are those of `slice_thickness_mm`."""
    return pixel_mm**2 * slice_thickness_mm(z_mm, single_slice_mm) / 1000


class _Profile(NamedTuple):
    """Pixels of an organ in a slice, counted by column and by row of their crop."""

    index: int
    left: int
    top: int
    columns: np.ndarray
    """int32 (w,)"""
    rows: np.ndarray
    """int32 (h,)"""


class OrganMeasures:
    """Sizes and boxes of the organs of a series, from one pass over its masks, of which it keeps profiles."""

    def __init__(self) -> None:
        self._pixels = array("q")  # per slice and organ
        self._profiles: dict[str, list[_Profile]] = defaultdict(list)
        self._shape: tuple[int, ...] | None = None

    def add(self, mask: np.ndarray) -> None:
        """Add the next slice, head to feet: (H, W) label map, uint8.

        Raises:
            ValueError: the shape of the slice differs from earlier slices.
        """
        if self._shape not in (None, mask.shape):
            raise ValueError(f"a slice of shape {mask.shape} among slices of shape {self._shape}")
        self._shape = mask.shape
        index = len(self._pixels) // len(ORGANS)
        for organ, label in ORGANS.items():
            found = crop_organ(mask, label)
            if found is None:
                self._pixels.append(0)
                continue
            left, top, crop = found
            columns, rows = (crop.sum(axis=axis, dtype=np.int32) for axis in (0, 1))
            self._pixels.append(int(rows.sum()))
            self._profiles[organ].append(_Profile(index, left, top, columns, rows))

    def areas(self, pixel_mm: float, z_mm: np.ndarray) -> pd.DataFrame:
        """One row per slice: index, z_mm, and the area of each organ, named as in `AREA_COLUMNS`.

        Args:
            pixel_mm: side of a pixel.
            z_mm: (slices,) positions.

        Raises:
            ValueError: the number of positions differs from the number of slices.
        """
        pixels, z_mm = self._table(z_mm)
        table = pd.DataFrame(pixels * float(pixel_mm) ** 2, columns=list(AREA_COLUMNS.values()))
        table.insert(0, "index", np.arange(len(table)))
        table.insert(1, "z_mm", z_mm)
        return table

    def organs(self, pixel_mm: float, z_mm: np.ndarray, single_slice_mm: float | None = None) -> pd.DataFrame:
        """One row per organ, in the order of `ORGANS`, with the columns and types of `ORGAN_TYPES`.

        The box holds the organ without specks far from it: along each axis it leaves out `TAIL` of the volume
        at either end, and slices of runs below `MIN_RUN`. `first_slice` and `last_slice` are its first and
        last slice, counted from 0, `top_z_mm` and `bottom_z_mm` their positions; the rest is in pixels, with
        `right` and `bottom` exclusive. An organ that is in no slice has a volume of 0 and missing values
        elsewhere.

        Args:
            pixel_mm: side of a pixel.
            z_mm: (slices,) positions, decreasing from head to feet.
            single_slice_mm: thickness used for a series with one slice.

        Raises:
            ValueError: positions of another number of slices, and as `slice_thickness_mm` does.
        """
        pixels, z_mm = self._table(z_mm)
        volumes_ml = voxel_volumes_ml(pixel_mm, z_mm, single_slice_mm) @ pixels
        thickness_mm = np.nan_to_num(slice_thickness_mm(z_mm, single_slice_mm), nan=1.0)  # of a single slice
        rows = []
        for organ, volume_ml, counts in zip(ORGANS, volumes_ml, pixels.T, strict=True):
            row = {"organ": organ, "volume_ml": volume_ml}
            if counts.any():
                first, last = _central_range(_main_runs(counts * thickness_mm, z_mm))
                row |= {"first_slice": first, "last_slice": last}
                row |= {"top_z_mm": z_mm[first], "bottom_z_mm": z_mm[last]}
                row |= self._box(organ, first, last, thickness_mm)
            rows.append(row)
        return pd.DataFrame(rows, columns=list(ORGAN_TYPES)).astype(dict(ORGAN_TYPES))

    def _box(self, organ: str, first: int, last: int, thickness_mm: np.ndarray) -> dict[str, int]:
        """Left, top, right and bottom of an organ in the slices from `first` to `last`."""
        by_row, by_column = (np.zeros(side) for side in self._shape)
        for profile in self._profiles[organ]:
            if first <= profile.index <= last:
                weight, left, top = thickness_mm[profile.index], profile.left, profile.top
                by_column[left : left + len(profile.columns)] += weight * profile.columns
                by_row[top : top + len(profile.rows)] += weight * profile.rows
        (left, right), (top, bottom) = _central_range(by_column), _central_range(by_row)
        return {"left": left, "top": top, "right": right + 1, "bottom": bottom + 1}

    def _table(self, z_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (slices, organs), and positions (slices,) as floats."""
        pixels = np.array(self._pixels, dtype=np.int64).reshape(-1, len(ORGANS))
        z_mm = np.asarray(z_mm, dtype=np.float64)
        if z_mm.shape != (len(pixels),):
            raise ValueError(f"positions of shape {z_mm.shape} for {len(pixels)} slices")
        return pixels, z_mm


def _main_runs(volumes: np.ndarray, z_mm: np.ndarray) -> np.ndarray:
    """Volumes (slices,) of an organ, set to 0 in runs of slices that are small and far from the rest."""
    shown = np.flatnonzero(volumes)
    is_new = (np.diff(shown) > 1) & (-np.diff(z_mm[shown]) > MAX_GAP_MM)
    run = np.append(0, np.cumsum(is_new))  # number of each shown slice's run
    totals = np.bincount(run, weights=volumes[shown])
    kept = np.zeros_like(volumes)
    is_kept = totals[run] >= MIN_RUN * totals.max()
    kept[shown[is_kept]] = volumes[shown[is_kept]]
    return kept


def _central_range(weights: np.ndarray) -> tuple[int, int]:
    """First and last place of an axis, without the places that hold `TAIL` of the weight at either end."""
    below = np.cumsum(weights)
    first = np.searchsorted(below, TAIL * below[-1], side="right")
    return int(first), int(np.searchsorted(below, (1 - TAIL) * below[-1]))


def crop_organ(mask: np.ndarray, label: int) -> tuple[int, int, np.ndarray] | None:
    """Left, top, and the smallest crop (h, w) of all pixels of an organ, uint8 with the organ at 1.

    None if the organ is not in the slice.
    """
    organ = (mask == label).view(np.uint8)
    left, top, width, height = cv2.boundingRect(organ)
    return (left, top, organ[top : top + height, left : left + width]) if width else None
