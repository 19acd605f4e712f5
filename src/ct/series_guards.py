"""Guards for series that are not one regular pass of a scanner: one grid, one place, and inverted values."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from src.core.isolation import Report
from src.ct.dicom_header import DicomError, Header
from src.ct.pixels import read_hu
from src.ct.series import ReadSettings, Rejected, Remark
from src.ct.windows import AIR_HU

SAME_CENTRE_MM = 5.0
"""Largest distance across the patient between slices of one grid."""

SAME_POSITION_MM = 0.01
"""Slices closer than this along the patient lie at one height."""

NOTABLE = 0.2
"""Share of slices from which on something is no exception: consecutive scans share fewer at their seam."""

FEW = 4
"""Most acquisitions of a series, and fewest slices of one."""

GAP = 1.5
"""A distance above this multiple of the usual one means that slices are missing."""

_SAME_DIRECTION = np.cos(np.deg2rad(1.0))  # lowest cosine of two axes of one grid: writers round and jitter
_SAME_SPACING = 1e-3  # largest relative difference of spacings of one grid: writers round to four decimals
_SAME_POSITION_DECIMALS = 2
_POLARITY_SLICES = 5


def keep_main_grid(headers: list[Header], rejected: list[Rejected], remarks: list[Remark]) -> list[Header]:
    """Keep the most common size, spacing, orientation and kind of pixels; a tie goes to the larger key.

    Spacings and orientations are compared, with a tolerance, to the one that most slices agree with.
    """

    def grid(header: Header) -> tuple:
        spacing = (round(header.row_mm, 4), round(header.col_mm, 4))
        axes = tuple(round(value, 4) + 0.0 for value in (*header.along_cols, *header.along_rows))
        return (header.rows, header.cols, header.windowed), spacing, axes

    counts = Counter(map(grid, headers))
    keys, numbers = list(counts), np.array(list(counts.values()))
    kinds = np.array([kind for kind, _, _ in keys])
    spacings = np.array([spacing for _, spacing, _ in keys])
    directions = np.array([axes for _, _, axes in keys]).reshape(-1, 2, 3)
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)

    def alike(index: int) -> np.ndarray:
        cosines = (directions * directions[index]).sum(axis=2).min(axis=1)
        stretch = np.abs(spacings / spacings[index] - 1).max(axis=1)
        same_kind = (kinds == kinds[index]).all(axis=1)
        return same_kind & (stretch <= _SAME_SPACING) & (cosines >= _SAME_DIRECTION)

    main = max(range(len(keys)), key=lambda index: (numbers[alike(index)].sum(), keys[index]))
    kept = {keys[index] for index in np.flatnonzero(alike(main))}
    is_kept = [grid(header) in kept for header in headers]
    return _split(headers, is_kept, "another size, spacing, orientation or kind of pixels", rejected, remarks)


def keep_main_centre(headers: list[Header], rejected: list[Rejected], remarks: list[Remark]) -> list[Header]:
    """Keep the most common position of the first pixel across the patient; a tie goes to the head's side.

    The position may drift linearly along the patient, as in slices of a tilted gantry, which are stacked
    along the table rather than along their normal.
    """
    grid, positions = headers[0].grid, np.array([header.position_mm for header in headers])
    order = np.lexsort((*positions.T, -np.round(positions @ grid.normal, _SAME_POSITION_DECIMALS)))
    z_mm = positions[order] @ grid.normal
    across = positions[order] @ np.array([grid.along_cols, grid.along_rows]).T  # (slices, 2)
    table = np.array([grid.along_cols, grid.along_rows])[:, 2] / grid.normal[2]
    slopes = [np.zeros(2), table]
    steps = np.diff(z_mm)
    apart = np.abs(steps) > SAME_POSITION_MM
    if apart.any():
        slopes.append(np.median(np.diff(across, axis=0)[apart] / steps[apart, None], axis=0))
    is_near = max((_commonest(across - z_mm[:, None] * slope) for slope in slopes), key=np.count_nonzero)
    is_kept = np.empty(len(headers), dtype=bool)
    is_kept[order] = is_near
    return _split(headers, is_kept, "another place across the patient", rejected, remarks)


def _commonest(places_mm: np.ndarray) -> np.ndarray:
    """Return (n,) whether each place (n, 2) is near the densest one; the first of several such places."""
    candidates = np.unique(np.round(places_mm), axis=0, return_index=True)[1]
    candidates.sort()
    near = (np.abs(places_mm - places_mm[index]).max(axis=1) <= SAME_CENTRE_MM for index in candidates)
    return max(near, key=np.count_nonzero)


def _split(
    headers: Sequence[Header],
    is_kept: Iterable[bool],
    reason: str,
    rejected: list[Rejected],
    remarks: list[Remark],
) -> list[Header]:
    """Return the headers to keep and reject the others for `reason`."""
    kept = []
    for header, keep in zip(headers, is_kept, strict=True):
        if keep:
            kept.append(header)
        else:
            rejected.append(Rejected(header.file.name, f"{reason} than the series"))
    normal = kept[0].grid.normal
    every_mm, kept_mm = (np.array([h.position_mm for h in part]) @ normal for part in (headers, kept))
    if text := lost_part(every_mm, kept_mm, f"of {reason}"):
        remarks.append(Remark(text, doubtful=True))
    return kept


def lost_part(every_mm: np.ndarray, kept_mm: np.ndarray, which: str) -> str:
    """Return which slices were excluded if many of them cover a part of the patient that is lost, else "".

    Args:
        every_mm: positions of all slices along their normal.
        kept_mm: positions of those that are kept.
    """
    at = np.unique(kept_mm)
    nearest = np.abs(at[:, None] - every_mm).min(axis=0)
    lost = int((nearest > GAP * max(spacing_mm(at), SAME_POSITION_MM)).sum())
    n_out = len(every_mm) - len(kept_mm)
    if lost < FEW or lost <= NOTABLE * len(kept_mm):
        return ""
    return f"{count(n_out)} {which} left out, {lost} of them beyond the scan"


def spacing_mm(z_mm: np.ndarray) -> float:
    """Median distance between neighbouring heights; 0 for a single one."""
    heights = np.unique(np.round(z_mm, _SAME_POSITION_DECIMALS))
    return float(np.median(np.diff(heights))) if len(heights) > 1 else 0.0


def count(n_slices: int) -> str:
    """Return the number of slices as text."""
    return f"{n_slices} slice" + "s" * (n_slices != 1)


def with_true_polarity(headers: list[Header], settings: ReadSettings, report: Report) -> list[Header]:
    """Decide whether MONOCHROME1 (0028,0004) means inverted values.

    By the standard it only affects display, yet some writers also invert the values. Air around the patient
    is darker than the patient, so a few slices are enough to tell.
    """
    flagged = [header for header in headers if header.inverted]
    contrast = 0.0
    for index in np.unique(np.linspace(0, len(flagged) - 1, _POLARITY_SLICES).astype(int)):
        report(flagged[index].file.name)
        try:
            contrast += _middle_over_surroundings(read_hu(flagged[index], settings.pydicom_only))
        except DicomError:
            continue
    if contrast >= 0:  # the values are inverted: inverting them made the patient brighter than the air
        return headers
    return [replace(header, inverted=False) for header in headers]


def _middle_over_surroundings(hu: np.ndarray) -> float:
    """Mean HU of the image's centre minus that of a ring at its inner circle; padding is ignored."""
    rows, cols = (np.linspace(-1, 1, length) for length in hu.shape)
    radius = np.hypot(rows[:, None], cols)
    counts = hu > AIR_HU
    middle, ring = hu[counts & (radius < 0.4)], hu[counts & (radius > 0.85) & (radius < 1)]
    return float(middle.mean() - ring.mean()) if middle.size and ring.size else 0.0
