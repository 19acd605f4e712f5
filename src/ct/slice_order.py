"""Slices from head to feet, one at each height."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from src.ct.dicom_header import Header, positions_along_normal
from src.ct.series import Rejected, Remark, SeriesError
from src.ct.series_guards import NOTABLE, count

_SAME_HEIGHT_DECIMALS = 2  # positions closer than 0.01 mm count as equal
_NO_TIME = float("nan")


def order_head_to_feet(
    headers: Sequence[Header], rejected: list[Rejected], remarks: list[Remark]
) -> list[Header]:
    """Order slices by their positions along the normal; of several at one height, one stays.

    It is the one whose InstanceNumber (0020,0013) fits those of the slices above and below best, then the one
    whose time does, then the one with the lowest number.

    Args:
        rejected: receives the other slices.
        remarks: receives a doubt if many slices share a height with one of another InstanceNumber.

    Raises:
        SeriesError: all slices lie at one height.
    """
    at: dict[float, list[Header]] = defaultdict(list)
    for height, header in zip(
        np.round(positions_along_normal(headers), _SAME_HEIGHT_DECIMALS).tolist(), headers, strict=True
    ):
        at[height].append(header)
    n_shared = sum(len(there) for there in at.values() if len({h.instance_number for h in there}) > 1)
    if n_shared == len(headers) and len(at) == 1:
        raise SeriesError(f"all {count(n_shared)} lie at one height")
    if n_shared > NOTABLE * len(headers):
        text = f"{n_shared} of {count(len(headers))} share their height with another slice"
        remarks.append(Remark(text, doubtful=True))
    numbers, times = (
        _Trend({height: value(there[0]) for height, there in at.items() if len(there) == 1})
        for value in (_number, _seconds)
    )
    kept = []
    for height in sorted(at, reverse=True):
        best, *others = at[height]
        if others:

            def misfit(header: Header, height: float = height) -> tuple:
                number, time = numbers.misfit(height, _number(header)), times.misfit(height, _seconds(header))
                return number, time, header.instance_number, header.file.name

            best, *others = sorted(at[height], key=misfit)
        kept.append(best)
        rejected += [Rejected(header.file.name, "same position as another slice") for header in others]
    return kept


class _Trend:
    """A value of slices along the patient, known at the heights where only one slice lies."""

    def __init__(self, value_at: dict[float, float]) -> None:
        known = {height: value for height, value in value_at.items() if not np.isnan(value)}
        self._heights = sorted(known)
        self._values = [known[height] for height in self._heights]

    def misfit(self, height: float, value: float) -> float:
        """Return how far a value is from the one between the neighbours', 0 if that is not known."""
        if len(self._heights) < 2 or np.isnan(value):
            return 0.0
        return abs(value - float(np.interp(height, self._heights, self._values)))


def _number(header: Header) -> float:
    return float(header.instance_number)


def _seconds(header: Header) -> float:
    """Seconds of AcquisitionTime (0008,0032), else of ContentTime (0008,0033): HHMMSS.FFFFFF, or NaN."""
    text = header.acquisition_time or header.content_time
    try:
        return 3600.0 * int(text[:2]) + 60.0 * int(text[2:4]) + float(text[4:])
    except ValueError:
        return _NO_TIME
