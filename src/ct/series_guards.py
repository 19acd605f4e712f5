"""Guards for series that are not one regular pass of a scanner: slices to keep, and inverted values.

Files under one series UID may hold several grids, scans of several regions, or several acquisitions of the
same region. Two contrast phases, at the same or at interleaved positions, would make a stack that alternates
between them; passes that follow each other along the patient form one scan.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from src.core.isolation import Report
from src.ct.dicom_header import DicomError, Header
from src.ct.pixels import read_hu
from src.ct.series import ReadSettings, Rejected
from src.ct.windows import AIR_HU

SAME_CENTRE_MM = 5.0
"""Largest distance across the patient between slices of one grid."""

_SAME_DIRECTION = np.cos(np.deg2rad(1.0))  # lowest cosine of two axes of one grid: writers round and jitter
_SAME_SPACING = 1e-3  # largest relative difference of spacings of one grid: writers round to four decimals
_SAME_POSITION_DECIMALS = 2
_SAME_POSITION_MM = 0.01
_OVERLAP = 0.2  # fraction of a group's slices; consecutive scans may share a few slices at the seam
_FEW = 4  # most phases of a series, and fewest slices of a phase
_GAP = 1.5  # as a multiple of the median distance
_FEW_GAPS = 0.1  # as a fraction of all distances
_REASON = "another acquisition of the same region"
_POLARITY_SLICES = 5

Groups = dict[Hashable, list[int]]


def keep_main_grid(headers: list[Header], rejected: list[Rejected]) -> list[Header]:
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
    return _split(headers, is_kept, "another size, spacing, orientation or kind of pixels", rejected)


def keep_one_acquisition(headers: list[Header], z_mm: np.ndarray, rejected: list[Rejected]) -> list[Header]:
    """Exclude slices of a second pass through the region of the largest pass.

    AcquisitionNumber (0020,0012) separates passes. Otherwise passes are separated by ImageType (0008,0008),
    by AcquisitionTime (0008,0032), or by InstanceNumbers that repeat (at different times) or restart along
    the patient, if that gives a few overlapping groups that each look like a pass. Of overlapping groups the
    one with most slices is kept, then the first.

    Args:
        z_mm: (slices,) position of each header along the slice normal.
        rejected: receives the excluded slices.
    """
    headers, z_mm = _keep_apart(headers, z_mm, _by_number(headers, z_mm), rejected)
    for group in (_by_image_type, _by_time, _by_repeats, _by_instance_runs):
        groups = group(headers, z_mm)
        if len(groups) <= _FEW and all(_is_pass(z_mm[indices]) for indices in groups.values()):
            headers, z_mm = _keep_apart(headers, z_mm, groups, rejected)
    return headers


def _by_number(headers: Sequence[Header], z_mm: np.ndarray) -> Groups:
    return _group(headers, lambda header: header.acquisition_number or 0)


def _by_image_type(headers: Sequence[Header], z_mm: np.ndarray) -> Groups:
    return _group(headers, lambda header: header.image_type)


def _by_time(headers: Sequence[Header], z_mm: np.ndarray) -> Groups:
    return _group(headers, lambda header: header.acquisition_time)


def _by_repeats(headers: Sequence[Header], z_mm: np.ndarray) -> Groups:
    """Group the first slice of every InstanceNumber in time, then the second of each, and so on.

    If slices with the same number have the same times, all are one group: any order would be arbitrary.
    """

    def time(index: int) -> tuple[str, str]:
        return headers[index].acquisition_time, headers[index].content_time  # (0008,0032), (0008,0033)

    repeats: Groups = defaultdict(list)
    for indices in _group(headers, lambda header: header.instance_number).values():
        if len(set(map(time, indices))) < len(indices):
            return {0: list(range(len(headers)))}
        for repeat, index in enumerate(sorted(indices, key=time)):
            repeats[repeat].append(index)
    return repeats


def _group(headers: Sequence[Header], key: Callable[[Header], Hashable]) -> Groups:
    groups: Groups = defaultdict(list)
    for index, header in enumerate(headers):
        groups[key(header)].append(index)
    return groups


def _is_pass(z_mm: np.ndarray) -> bool:
    """Return whether slices are evenly spaced except for a few gaps, unlike a random subset of a pass."""
    gaps = np.diff(np.unique(np.round(z_mm, 2)))
    return len(gaps) >= _FEW - 1 and bool(np.mean(gaps > _GAP * np.median(gaps)) <= _FEW_GAPS)


def _by_instance_runs(headers: Sequence[Header], z_mm: np.ndarray) -> Groups:
    """Group slices in the order of InstanceNumber, split where their direction along the patient reverses."""
    order = sorted(range(len(headers)), key=lambda index: headers[index].instance_number)
    runs: Groups = {0: order[:1]}
    direction = 0.0
    for before, index in pairwise(order):
        step = np.sign(z_mm[index] - z_mm[before])
        if direction and step == -direction:
            direction = 0.0
            runs[len(runs)] = [index]
            continue
        direction = direction or step
        runs[len(runs) - 1].append(index)
    return runs


def _keep_apart(
    headers: list[Header], z_mm: np.ndarray, groups: Groups, rejected: list[Rejected]
) -> tuple[list[Header], np.ndarray]:
    """Accept groups by size: each whole, without the slices inside an earlier group, or not at all."""
    kept: list[int] = []
    taken = np.empty((2, 0))  # lowest and highest position of each accepted group
    for key in sorted(groups, key=lambda key: (-len(groups[key]), key)):
        indices = np.array(groups[key])
        z = z_mm[indices][:, None]
        inside = ((taken[0] - _SAME_POSITION_MM <= z) & (z <= taken[1] + _SAME_POSITION_MM)).any(axis=1)
        if inside.mean() > _OVERLAP:
            inside[:] = True
        rejected += [Rejected(headers[index].file.name, _REASON) for index in indices[inside]]
        rest = indices[~inside]
        if rest.size:
            kept += rest.tolist()
            taken = np.column_stack([taken, (z_mm[rest].min(), z_mm[rest].max())])
    kept.sort()
    return [headers[index] for index in kept], z_mm[kept]


def keep_main_centre(headers: list[Header], rejected: list[Rejected]) -> list[Header]:
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
    apart = np.abs(steps) > _SAME_POSITION_MM
    if apart.any():
        slopes.append(np.median(np.diff(across, axis=0)[apart] / steps[apart, None], axis=0))
    is_near = max((_commonest(across - z_mm[:, None] * slope) for slope in slopes), key=np.count_nonzero)
    is_kept = np.empty(len(headers), dtype=bool)
    is_kept[order] = is_near
    return _split(headers, is_kept, "another place across the patient", rejected)


def _commonest(places_mm: np.ndarray) -> np.ndarray:
    """Return (n,) whether each place (n, 2) is near the densest one; the first of several such places."""
    candidates = np.unique(np.round(places_mm), axis=0, return_index=True)[1]
    candidates.sort()
    near = (np.abs(places_mm - places_mm[index]).max(axis=1) <= SAME_CENTRE_MM for index in candidates)
    return max(near, key=np.count_nonzero)


def _split(
    headers: Sequence[Header], is_kept: Iterable[bool], reason: str, rejected: list[Rejected]
) -> list[Header]:
    """Return the headers to keep and reject the others for `reason`."""
    kept = []
    for header, keep in zip(headers, is_kept, strict=True):
        if keep:
            kept.append(header)
        else:
            rejected.append(Rejected(header.file.name, f"{reason} than the series"))
    return kept


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
