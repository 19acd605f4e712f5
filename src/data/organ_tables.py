"""Areas, volumes and positions of the organs of a series, measured from its label maps."""

from array import array
from types import MappingProxyType

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


class OrganMeasures:
    """Sizes and positions of the organs of a series, from one pass over its masks; five numbers per slice."""

    def __init__(self) -> None:
        self._pixels = array("q")  # per slice and organ
        self._boxes: dict[str, tuple[int, int, int, int]] = {}
        self._shape: tuple[int, ...] | None = None

    def add(self, mask: np.ndarray) -> None:
        """Add the next slice, head to feet: (H, W) label map, uint8.

        Raises:
            ValueError: the shape of the slice differs from earlier slices.
        """
        if self._shape not in (None, mask.shape):
            raise ValueError(f"a slice of shape {mask.shape} among slices of shape {self._shape}")
        self._shape = mask.shape
        for organ, label in ORGANS.items():
            found = crop_organ(mask, label)
            if found is None:
                self._pixels.append(0)
                continue
            left, top, crop = found
            self._pixels.append(cv2.countNonZero(crop))
            right, bottom = left + crop.shape[1], top + crop.shape[0]
            box = self._boxes.get(organ, (left, top, right, bottom))
            self._boxes[organ] = (
                *(min(box[0], left), min(box[1], top)),
                *(max(box[2], right), max(box[3], bottom)),
            )

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

        Slices count from 0; `last_slice` is the last slice with the organ; `top_z_mm` and `bottom_z_mm` are
        the positions of the first and the last. The box is in pixels, with `right` and `bottom` exclusive. An
        organ that is in no slice has a volume of 0 and missing values elsewhere.

        Args:
            pixel_mm: side of a pixel.
            z_mm: (slices,) positions, decreasing from head to feet.
            single_slice_mm: thickness used for a series with one slice.

        Raises:
            ValueError: positions of another number of slices, and as `slice_thickness_mm` does.
        """
        pixels, z_mm = self._table(z_mm)
        volumes_ml = voxel_volumes_ml(pixel_mm, z_mm, single_slice_mm) @ pixels
        rows = []
        for column, (organ, volume_ml) in enumerate(zip(ORGANS, volumes_ml, strict=True)):
            row = {"organ": organ, "volume_ml": volume_ml}
            if organ in self._boxes:
                first, last = np.flatnonzero(pixels[:, column])[[0, -1]]
                row |= {"first_slice": first, "last_slice": last}
                row |= {"top_z_mm": z_mm[first], "bottom_z_mm": z_mm[last]}
                row |= dict(zip(("left", "top", "right", "bottom"), self._boxes[organ], strict=True))
            rows.append(row)
        return pd.DataFrame(rows, columns=list(ORGAN_TYPES)).astype(dict(ORGAN_TYPES))

    def _table(self, z_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (slices, organs), and positions (slices,) as floats."""
        pixels = np.array(self._pixels, dtype=np.int64).reshape(-1, len(ORGANS))
        z_mm = np.asarray(z_mm, dtype=np.float64)
        if z_mm.shape != (len(pixels),):
            raise ValueError(f"positions of shape {z_mm.shape} for {len(pixels)} slices")
        return pixels, z_mm


def crop_organ(mask: np.ndarray, label: int) -> tuple[int, int, np.ndarray] | None:
    """Left, top, and the smallest crop (h, w) of all pixels of an organ, uint8 with the organ at 1.

    None if the organ is not in the slice.
    """
    organ = (mask == label).view(np.uint8)
    left, top, width, height = cv2.boundingRect(organ)
    return (left, top, organ[top : top + height, left : left + width]) if width else None
