"""One of the patients or scans that anonymisation and exports leave under one series UID.

Together they would make a stack that alternates between two people. InstanceNumbers (0020,0013) are unique
within a series, so numbers that repeat, and are no copies of files, show that series were mixed.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from src.core.isolation import Report
from src.ct.acquisitions import is_pass, share_of_numbers
from src.ct.dicom_header import DicomError, Header, positions_along_normal
from src.ct.pixels import read_hu
from src.ct.series import ReadSettings, Rejected, Remark
from src.ct.series_guards import FEW, GAP, NOTABLE, count, spacing_mm

_COMPARED = 3  # pairs of files whose pixels are compared
_SAME_HU = 5.0  # mean difference; a copy may be compressed with losses
_MAX_NAMES = 3  # in a remark
_MAX_NAME = 24  # longer ones, such as UIDs, tell a reader nothing
_PLURAL = {"patient": "patients", "study": "studies", "scan": "scans"}


def exclude_copies(
    headers: list[Header], settings: ReadSettings, report: Report, rejected: list[Rejected]
) -> list[Header]:
    """Exclude all but the first of the files that hold one slice: same number, position, time and grid.

    The pixels of a few are compared: two people scanned alike have equal headers once they are anonymised.
    """
    files: dict[tuple, list[Header]] = defaultdict(list)
    for header in sorted(headers, key=lambda header: header.file.name):
        files[_identity(header)].append(header)
    pairs = [(first, other) for first, *others in files.values() for other in others]
    chosen = np.unique(np.linspace(0, len(pairs) - 1, _COMPARED).astype(int)) if pairs else ()
    if not all(_same_pixels(*pairs[index], settings, report) for index in chosen):
        return headers
    copies = {id(copy) for _, copy in pairs}
    rejected += [Rejected(copy.file.name, "same position as another slice") for _, copy in pairs]
    return [header for header in headers if id(header) not in copies]


def _identity(header: Header) -> tuple:
    numbers = (header.instance_number, header.acquisition_number, header.slope, header.intercept)
    times = (header.acquisition_time, header.content_time, header.image_type)
    who = (header.patient_id, header.study_uid)
    place = tuple(round(value, 2) + 0.0 for value in header.position_mm)
    return (*numbers, *times, *who, place, header.grid, header.windowed)


def _same_pixels(one: Header, other: Header, settings: ReadSettings, report: Report) -> bool:
    try:
        hu = []
        for header in (one, other):
            report(header.file.name)
            hu.append(read_hu(header, settings.pydicom_only).astype(np.float32))
    except DicomError:  # reported when the slice is read
        return True
    return bool(np.abs(hu[0] - hu[1]).mean() <= _SAME_HU)


def keep_one_scan(headers: list[Header], rejected: list[Rejected], remarks: list[Remark]) -> list[Header]:
    """Keep the patient (0010,0020) and study (0020,000D) with most slices, then one of mixed series.

    Series are told apart by the folder of the file, SeriesInstanceUID (0020,000E) or FrameOfReferenceUID
    (0020,0052). Files of several folders are one series if their InstanceNumbers do not repeat, or if one
    folder continues where another one ends.

    Args:
        rejected: receives the excluded slices.
        remarks: receives a doubt if any are excluded.
    """
    for kind, key in (("patient", _patient), ("study", _study)):
        values = list(map(key, headers))
        headers = _keep(headers, _commonest(values), kind, values, rejected, remarks)
    for key in (_folder, _series, _frame):
        values = list(map(key, headers))
        headers = _keep(headers, _without_repeats(headers, values), "scan", values, rejected, remarks)
    return headers


def keep_unrepeated_numbers(
    headers: list[Header], rejected: list[Rejected], remarks: list[Remark]
) -> list[Header]:
    """Keep one of several series whose InstanceNumbers repeat while their slices alternate along the patient.

    Nothing in the headers tells them apart, so they are separated by file, if a file holds several slices, or
    else by the order of the slices with equal numbers. If that gives no scan, all slices stay, with a doubt.
    """
    z_mm = positions_along_normal(headers)
    if not _alternates(headers, z_mm):
        return headers
    files = [header.file.name.rpartition(" frame ")[0] for header in headers]
    for values in (files, _ranks(headers, z_mm)):
        largest = max(_indices(values), key=len)
        if len(largest) < len(headers) and is_pass(z_mm[largest]) and _repeated(headers, largest) <= NOTABLE:
            return _keep(headers, largest, "scan", values, rejected, remarks)
    remarks.append(Remark("two scans under one series UID that nothing tells apart", doubtful=True))
    return headers


def _patient(header: Header) -> str:
    return header.patient_id


def _study(header: Header) -> str:
    return header.study_uid


def _folder(header: Header) -> str:
    return header.file.name.rpartition("/")[0]


def _series(header: Header) -> str:
    return header.series_uid


def _frame(header: Header) -> str:
    return header.frame_uid


def _commonest(values: Sequence[str]) -> list[int]:
    """Return the slices with the most common value, or none; all if writers made one up for each file."""
    counts = Counter(filter(None, values))
    value, most = counts.most_common(1)[0] if counts else ("", 0)
    is_made_up = len(counts) > FEW and most <= counts.total() / 2
    return [index for index, each in enumerate(values) if is_made_up or each in (value, "")]


def _indices(values: Sequence[Hashable]) -> list[list[int]]:
    """Return the indices of each distinct value."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, value in enumerate(values):
        groups[value].append(index)
    return list(groups.values())


def _without_repeats(headers: Sequence[Header], values: Sequence[str]) -> list[int]:
    """Accept groups of slices by size, without those that repeat the InstanceNumbers of accepted ones.

    Where InstanceNumbers are missing or all equal, positions tell: passes of one series do not take turns.
    """
    z_mm = positions_along_normal(headers)
    kept: list[int] = []
    for indices in sorted(_indices(values), key=len, reverse=True):
        if kept and len(indices) >= FEW and not _continues(z_mm[indices], z_mm[kept]):
            if max(_repeated(headers, indices), _repeated(headers, kept)) <= NOTABLE:
                is_mixed = share_of_numbers(headers, indices, kept) > NOTABLE
            else:
                low, high = z_mm[kept].min(), z_mm[kept].max()
                between = (low <= z_mm[indices]) & (z_mm[indices] <= high)
                is_mixed = is_pass(z_mm[indices]) and is_pass(z_mm[kept]) and between.mean() > NOTABLE
            if is_mixed:
                continue
        kept += indices
    return sorted(kept)


def _continues(z_mm: np.ndarray, kept_mm: np.ndarray) -> bool:
    """Return whether slices follow accepted ones along the patient at the distance of neighbours."""
    step = max(spacing_mm(z_mm), spacing_mm(kept_mm))
    apart = max(z_mm.min() - kept_mm.max(), kept_mm.min() - z_mm.max())
    return 0 < apart <= GAP * step


def _repeated(headers: Sequence[Header], indices: Iterable[int]) -> float:
    """Return the share of slices that have no InstanceNumber of their own."""
    numbers = Counter(headers[index].instance_number for index in indices)
    return 1 - sum(n == 1 and number != 0 for number, n in numbers.items()) / numbers.total()


def _alternates(headers: Sequence[Header], z_mm: np.ndarray) -> bool:
    """Return whether InstanceNumbers repeat, other than in passes that lie one above the other."""
    numbers = np.array([header.instance_number for header in headers])
    known = np.flatnonzero(numbers)
    if len(np.unique(numbers[known])) < 2 or _repeated(headers, known) <= NOTABLE:
        return False
    steps = np.sign(np.diff(numbers[known][np.argsort(z_mm[known], kind="stable")]))
    return bool(min(np.sum(steps != direction) for direction in (-1, 1)) >= FEW)


def _ranks(headers: Sequence[Header], z_mm: np.ndarray) -> list[int]:
    """Return 0 for the lowest slice of each InstanceNumber, 1 for the next, ...; by time at one height."""

    def place(index: int) -> tuple:
        header = headers[index]
        return round(z_mm[index], 2), header.acquisition_time, header.content_time, header.file.name

    seen: Counter[int] = Counter()
    ranks = [0] * len(headers)
    for index in sorted(range(len(headers)), key=place):
        number = headers[index].instance_number
        ranks[index] = seen[number]
        seen[number] += 1
    return ranks


def _keep(
    headers: list[Header],
    kept: Sequence[int],
    kind: str,
    values: Sequence[Hashable],
    rejected: list[Rejected],
    remarks: list[Remark],
) -> list[Header]:
    """Return the headers to keep; reject the others as those of another `kind`, told apart by `values`."""
    if len(kept) == len(headers):
        return headers
    others = sorted(set(range(len(headers))) - set(kept))
    rejected += [Rejected(headers[index].file.name, f"another {kind} in the same series") for index in others]
    names = sorted({values[index] for index in others})
    shown = [name for name in names if isinstance(name, str) and 0 < len(name) <= _MAX_NAME]
    of = f" of {', '.join(shown)}" if len(shown) == len(names) <= _MAX_NAMES else ""
    text = f"several {_PLURAL[kind]} in one series: {count(len(others))}{of} left out"
    remarks.append(Remark(text, doubtful=True))
    return [headers[index] for index in sorted(kept)]
