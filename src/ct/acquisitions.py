"""One acquisition of each region, of the several that may share a series UID.

Two contrast phases, at the same or at interleaved positions, would make a stack that alternates between
them. Passes that follow each other along the patient form one scan, also where they overlap.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from src.ct.dicom_header import Header
from src.ct.series import Rejected, Remark
from src.ct.series_guards import FEW, GAP, NOTABLE, SAME_POSITION_MM, count, lost_part, spacing_mm

_FEW_GAPS = 0.1  # as a fraction of all distances
_NEAR = 0.5  # of the distance between slices: closer slices of another acquisition cover nothing new
_TAIL_MM = 10.0  # shortest part of an overlapping acquisition that is worth a seam
_REASON = "another acquisition of the same region"

Groups = dict[Hashable, list[int]]


def keep_one_acquisition(
    headers: list[Header], z_mm: np.ndarray, rejected: list[Rejected], remarks: list[Remark]
) -> list[Header]:
    """Exclude slices of a second pass through the region of the largest pass.

    AcquisitionNumber (0020,0012) separates passes. Otherwise passes are separated by ImageType (0008,0008),
    by AcquisitionTime (0008,0032), or by InstanceNumbers that repeat (at different times) or restart along
    the patient, if that gives a few overlapping groups that each look like a pass. Of overlapping groups the
    one with most slices is kept, then the first; of the others, the parts that only they cover.

    Args:
        z_mm: (slices,) position of each header along the slice normal.
        rejected: receives the excluded slices.
        remarks: receives their number; doubtful if they cover a part of the patient that no other slice does.
    """
    every_mm = z_mm
    headers, z_mm = _keep_apart(headers, z_mm, _by_number(headers, z_mm), rejected)
    for group in (_by_image_type, _by_time, _by_repeats, _by_instance_runs):
        groups = group(headers, z_mm)
        if _are_passes(groups, z_mm):
            same_kind = group is not _by_image_type  # derived images may be no HU, or of another sharpness
            headers, z_mm = _keep_apart(headers, z_mm, groups, rejected, same_kind)
    if n_out := len(every_mm) - len(headers):
        lost = lost_part(every_mm, z_mm, f"of {_REASON}")
        remarks.append(Remark(lost or f"{count(n_out)} of {_REASON} left out", doubtful=bool(lost)))
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


def _are_passes(groups: Groups, z_mm: np.ndarray) -> bool:
    """Return whether groups of slices can be acquisitions: few, or long enough to repeat a whole scan."""
    if len(groups) > FEW:
        n_heights = len(np.unique(np.round(z_mm, 2)))
        if min(map(len, groups.values())) < n_heights / 2:
            return False
    return all(is_pass(z_mm[indices]) for indices in groups.values())


def share_of_numbers(headers: Sequence[Header], indices: Iterable[int], others: Iterable[int]) -> float:
    """Return the share of slices whose InstanceNumber (0020,0013) others have, too; 0 is no number."""
    taken = {headers[index].instance_number for index in others} - {0}
    return float(np.mean([headers[index].instance_number in taken for index in indices]))


def _group(headers: Sequence[Header], key: Callable[[Header], Hashable]) -> Groups:
    """Indices of the headers by the value of `key`, in the order of the headers."""
    groups: Groups = defaultdict(list)
    for index, header in enumerate(headers):
        groups[key(header)].append(index)
    return groups


def is_pass(z_mm: np.ndarray) -> bool:
    """Return whether slices are evenly spaced except for a few gaps, unlike a random subset of a pass."""
    gaps = np.diff(np.unique(np.round(z_mm, 2)))
    return len(gaps) >= FEW - 1 and bool(np.mean(gaps > GAP * np.median(gaps)) <= _FEW_GAPS)


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
    headers: list[Header],
    z_mm: np.ndarray,
    groups: Groups,
    rejected: list[Rejected],
    same_kind: bool = True,
) -> tuple[list[Header], np.ndarray]:
    """Accept groups by size: each without the slices inside earlier groups.

    Of a group that overlaps much, only long parts outside of them are accepted; none if the images are of
    another kind, or if their InstanceNumbers repeat those accepted, as those of another patient would.
    """
    kept: list[int] = []
    taken = np.empty((2, 0))  # lowest and highest position of each accepted part
    near_mm = 0.0
    for key in sorted(groups, key=lambda key: (-len(groups[key]), key)):
        indices = np.array(groups[key])
        inside = _is_within(z_mm[indices], taken, SAME_POSITION_MM)
        overlaps = inside.mean() > NOTABLE
        if overlaps:
            continues = same_kind and share_of_numbers(headers, indices, kept) <= NOTABLE
            inside = _is_within(z_mm[indices], taken, near_mm) if continues else np.ones_like(inside)
        for part in _parts(z_mm, indices[~inside], taken):
            if not overlaps or (len(part) >= FEW and np.ptp(z_mm[part]) >= _TAIL_MM):
                kept += part.tolist()
                taken = np.column_stack([taken, (z_mm[part].min(), z_mm[part].max())])
        near_mm = near_mm or _NEAR * spacing_mm(z_mm[kept])
    left_out = np.setdiff1d(np.arange(len(headers)), kept)
    rejected += [Rejected(headers[index].file.name, _REASON) for index in left_out]
    kept.sort()
    return [headers[index] for index in kept], z_mm[kept]


def _is_within(z_mm: np.ndarray, ranges: np.ndarray, tolerance_mm: float) -> np.ndarray:
    """Return (n,) whether each position is inside of one of the ranges (2, m)."""
    z = z_mm[:, None]
    return ((ranges[0] - tolerance_mm <= z) & (z <= ranges[1] + tolerance_mm)).any(axis=1)


def _parts(z_mm: np.ndarray, indices: np.ndarray, ranges: np.ndarray) -> list[np.ndarray]:
    """Split slices outside of the ranges (2, m) where one of those lies between them."""
    n_below = (ranges[1] < z_mm[indices][:, None]).sum(axis=1)
    return [indices[n_below == number] for number in np.unique(n_below)]
