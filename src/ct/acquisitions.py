"""Several acquisitions under one series UID: which slices are one pass of the scanner through the patient.

Two phases of contrast in one folder, at the same or at interleaved positions, would make a stack that
alternates between them. Passes that follow each other along the patient are one scan, on the other hand.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise

import numpy as np

from src.ct.dicom_header import Header
from src.ct.series import Rejected

_SAME_POSITION_MM = 0.01
_OVERLAP = 0.2  # of a group's slices; scans that follow each other may share a few slices where they meet
_FEW = 4  # a series holds no more phases than this, and none of fewer slices
_GAP = 1.5  # times the median distance
_FEW_GAPS = 0.1  # of all distances
_REASON = "another acquisition of the same region"

Groups = dict[Hashable, list[int]]


def keep_one_acquisition(headers: list[Header], z_mm: np.ndarray, rejected: list[Rejected]) -> list[Header]:
    """Leave out slices of a second pass through the region of the largest one.

    AcquisitionNumber (0020,0012) tells passes apart; where it does not, ImageType (0008,0008),
    AcquisitionTime (0008,0032), InstanceNumbers that are there several times (at different times), or that
    begin anew along the patient do, if they make a few groups that overlap and each look like a pass. Of
    groups that overlap, the one with most slices stays, then the one that comes first.

    Args:
        z_mm: (slices,) position of each header along the slice normal.
        rejected: what is left out is added here.
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
    """The earliest slice of every InstanceNumber, the next one of each, and so on.

    All are one group where slices of one number share their times: their order would be chance.
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
    """Whether slices are spaced evenly but for a few gaps; those picked at random from a pass are not."""
    gaps = np.diff(np.unique(np.round(z_mm, 2)))
    return len(gaps) >= _FEW - 1 and bool(np.mean(gaps > _GAP * np.median(gaps)) <= _FEW_GAPS)


def _by_instance_runs(headers: Sequence[Header], z_mm: np.ndarray) -> Groups:
    """Slices in the order of InstanceNumber, cut where they turn back along the patient."""
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
    """Accept groups by size: all of one that lies apart from earlier ones, what is left of it, or nothing."""
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
