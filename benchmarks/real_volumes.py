"""Real CT as volumes of HU with organ masks, on the grid of a prepared data set: trunk crop, one size.

Masks are given (CHAOS, TotalSegmentator) or found by brightness: the largest connected part of a box, chosen
by eye, whose smoothed HU lie in a range. `organ_boxes.csv` holds box and range of each organ, and what was
seen: whether the mask lay inside the organ on every slice looked at (`keep`), and whether it ends in the
plane where the organ does (`whole`).
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from real_ct import MASK_IDS, chaos_series, grey_series, totalsegmentator_series

from src.core.errors import UserError
from src.ct.label_volume import open_labels
from src.ct.series import SeriesSource
from src.ct.storage import FileList, LocalFile
from src.ct.windows import WINDOWS
from src.phantom.body import ORGAN_LABELS
from src.prepare.grey_slices import examine, open_series, output_pixel_mm, spacing_z_mm

BOXES = Path(__file__).with_name("organ_boxes.csv")
SMOOTHING_MM = 2.5
OPENING_MM = 3.0
"""Radius of the ball that cuts thin bridges to other tissue."""
_AIR_HU = -300


@dataclass(frozen=True)
class RealVolume:
    """A series of a patient; slice 0 is nearest the head, rows run to the back, columns to the left."""

    patient: str
    hu: np.ndarray
    """float32 (Z, size, size)"""
    labels: np.ndarray
    """uint8 (Z, size, size), the kit's labels; 0 also where an organ was not segmented"""
    pixel_mm: float
    spacing_z_mm: float
    whole: tuple[str, ...] = tuple(ORGAN_LABELS)
    """organs whose masks end where the organ does, not at a plane that was chosen by eye"""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of slices, rows and columns."""
        return self.spacing_z_mm, self.pixel_mm, self.pixel_mm

    @cached_property
    def skin_depth_mm(self) -> np.ndarray:
        """Depth below the skin in the plane, float32 (Z, size, size); 0 outside the body."""
        depth = np.empty_like(self.hu)
        for plane, hu in zip(depth, self.hu, strict=True):
            parts, count = ndimage.label(ndimage.binary_opening(hu > _AIR_HU, iterations=2))
            body = np.zeros_like(parts, bool)
            if count:
                body = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
            plane[:] = ndimage.distance_transform_edt(ndimage.binary_fill_holes(body)) * self.pixel_mm
        return depth


def find_sources(ct: Path, scratch: Path) -> dict[str, SeriesSource]:
    """Every real series of a folder like that of `real_ct.py`, with the NIfTI series in `series`.

    Args:
        scratch: folder for NIfTI copies, which must outlive the sources.
    """
    sources = [
        chaos_series(ct / "chaos", scratch),
        totalsegmentator_series(ct / "totalsegmentator"),
        grey_series(ct / "rsna_processed", scratch),
    ]
    for path in sorted((ct / "series").glob("*.nii.gz")):
        name = path.name.removesuffix(".nii.gz")
        sources.append(SeriesSource(name, "1", FileList((LocalFile(path),)), kind="nifti"))
    return {source.patient_id: source for source in sources}


def read_volumes(
    ct: Path, scratch: Path, size: int, boxes: Path = BOXES, patients: Sequence[str] = ()
) -> Iterator[RealVolume]:
    """Read the series, all or those of `patients`, with given masks or a usable row in the table of boxes."""
    table = read_boxes(boxes)
    for patient, source in find_sources(ct, scratch).items():
        if patients and patient not in patients:
            continue
        rows = table[(table["patient"] == patient) & table["keep"]]
        if source.segmentation is not None or len(rows):
            volume = read_volume(source, size)
            for row in rows.itertuples():
                mask = grow(volume, row)
                volume.labels[mask & (volume.labels == 0)] = ORGAN_LABELS[row.organ]
            yield replace(volume, whole=tuple(rows["organ"][rows["whole"]])) if len(rows) else volume


def read_volume(source: SeriesSource, size: int) -> RealVolume:
    """Read a series with its given masks."""
    with open_series(source, WINDOWS["soft"]) as opened:
        examined = examine(opened)
        series, crop = examined.series, examined.crop
        count = len(series.z_mm)
        hu = np.stack([crop.resize(series.read(index).astype(np.float32), size) for index in range(count)])
        labels = np.zeros(hu.shape, np.uint8)
        if source.segmentation is not None:
            with open_labels(source.segmentation, MASK_IDS) as volume:
                for index in range(count):
                    labels[index] = volume.sample(crop.plane(series.plane(index), size), size, size)
        pixel_mm = output_pixel_mm(series, crop, size)
        return RealVolume(source.patient_id, hu, labels, pixel_mm, spacing_z_mm(series))


def read_boxes(path: Path) -> pd.DataFrame:
    """Read the table of boxes: one row per patient and organ.

    Raises:
        UserError: no such table, or an organ that is not a label of the kit.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if unknown := set(table["organ"]) - set(ORGAN_LABELS):
        raise UserError(f"{path}: unknown organ {min(unknown)}")
    return table.astype({"keep": bool, "whole": bool})


def grow(volume: RealVolume, row: Any) -> np.ndarray:
    """Find an organ in its box: bool (Z, size, size).

    Args:
        row: `first`, `last` (slices, inclusive), `top`, `bottom`, `left`, `right` of the box (fractions of
            the image), `low_hu`, `high_hu`.
    """
    size = volume.hu.shape[1]
    box = (
        slice(row.first, row.last + 1),
        slice(round(row.top * size), round(row.bottom * size)),
        slice(round(row.left * size), round(row.right * size)),
    )
    sigma = [min(SMOOTHING_MM / mm, 1.5) for mm in volume.spacing_mm]
    smooth = ndimage.gaussian_filter(np.clip(volume.hu[box], -200, 300), sigma)
    inside = (smooth > row.low_hu) & (smooth < row.high_hu)
    core = ndimage.distance_transform_edt(inside, volume.spacing_mm) > OPENING_MM
    parts, count = ndimage.label(core)
    if not count:
        raise UserError(f"{volume.patient}: no {row.organ} in its box of {row.low_hu} to {row.high_hu} HU")
    largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    near = ndimage.distance_transform_edt(~largest, volume.spacing_mm) <= OPENING_MM
    mask = np.zeros(volume.hu.shape, bool)
    mask[box] = np.stack([ndimage.binary_fill_holes(plane) for plane in near & inside])
    return mask
