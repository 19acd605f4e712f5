"""Distances between the slices of a series: missing slices, and scans of several spacings."""

from collections.abc import Sequence

import numpy as np

from src.ct.series_guards import GAP

_ALIKE = 0.05  # relative difference of distances that count as equal
_MIN_DISTANCES = 4  # of a part with a spacing of its own
_MAX_PARTS = 3


def describe_gaps(z_mm: np.ndarray, numbers: Sequence[int]) -> list[str]:
    """Say how many slices are missing, or in which parts the slices have another spacing.

    Args:
        z_mm: (slices,) decreasing positions.
        numbers: InstanceNumber (0020,0013) of each slice. Where they skip numbers slices are missing, however
            regular the distances are.
    """
    distances = -np.diff(z_mm)
    if not len(distances) or not (distances > GAP * np.median(distances)).any():
        return []
    parts = _regular_parts(distances, np.abs(np.diff(numbers)))
    usual = _usual_distances(distances, parts)
    texts = []
    if len(parts) > 1:
        number = {2: "two", 3: "three"}[len(parts)]
        *first, (last_mm, _) = [(np.median(distances[part]), part.stop - part.start) for part in parts]
        named = [f"{mm:.4g} mm for {n} slices" for mm, n in first]
        texts.append(f"{number} spacings: {', '.join(named)}, then {last_mm:.4g} mm")
    if wide := int((distances > GAP * usual).sum()):
        texts.append(f"gaps of missing slices: {wide}")
    return texts


def _regular_parts(distances: np.ndarray, steps: np.ndarray) -> list[slice]:
    """Return the parts with a spacing of their own, in order; none if there are no two or three such parts.

    Args:
        distances: (gaps,) in mm.
        steps: (gaps,) differences of InstanceNumbers, the same in all parts.
    """
    parts: list[slice] = []
    start = 0
    for end in range(1, len(distances) + 1):
        if end < len(distances) and _are_alike(distances[start], distances[end]):
            continue
        if end - start >= _MIN_DISTANCES:
            if parts and _are_alike(distances[parts[-1].start], distances[start]):  # some slices are missing
                parts[-1] = slice(parts[-1].start, end)
            else:
                parts.append(slice(start, end))
        start = end
    usual_steps = {float(np.median(steps[part])) for part in parts}
    return parts if 1 < len(parts) <= _MAX_PARTS and len(usual_steps) == 1 else []


def _are_alike(one_mm: float, other_mm: float) -> bool:
    return abs(one_mm - other_mm) <= _ALIKE * max(one_mm, other_mm)


def _usual_distances(distances: np.ndarray, parts: list[slice]) -> np.ndarray:
    """Return (gaps,) the spacing of the part of each distance; between parts, the larger one of both."""
    usual = np.full(len(distances), np.median(distances))
    for before, after in zip([None, *parts], [*parts, None], strict=True):
        spacings = [np.median(distances[part]) for part in (before, after) if part is not None]
        if spacings:
            usual[before.stop if before else 0 : after.start if after else None] = max(spacings)
    for part in parts:
        usual[part] = np.median(distances[part])
    return usual
