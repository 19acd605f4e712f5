"""Scans of a few pixels, where only positions and tags count."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from src.ct.dicom_series import DicomSeries, scan_series
from src.ct.series import CtSeries
from src.ct.storage import LocalTree
from tests.helpers.dicom_files import write_slice


def write_scan(
    folder: Path, heights_mm: Iterable[float], numbers: Iterable[int] | None = None, hu: int = 40, **tags
) -> Path:
    """Write a slice of 8 x 8 pixels at each height, in files named by their order; more join those there.

    Args:
        numbers: InstanceNumbers, else 1, 2, 3 ...
        tags: by keyword; a list gives each slice its own.
    """
    heights_mm = list(heights_mm)
    numbers = range(1, len(heights_mm) + 1) if numbers is None else numbers
    there = len(list(folder.glob("*.dcm")))
    for index, (z_mm, number) in enumerate(zip(heights_mm, numbers, strict=True)):
        own = {
            key: value[index] if isinstance(value, list) and len(value) == len(heights_mm) else value
            for key, value in tags.items()
        }
        path = folder / f"{there + index:03d}.dcm"
        write_slice(path, np.full((8, 8), hu), position_mm=(0, 0, z_mm), instance_number=number, **own)
    return folder


def numbers_of(series: CtSeries) -> list[int]:
    """InstanceNumbers from head to feet."""
    return [series.instance_number(index) for index in range(len(series.z_mm))]


def remarks_of(series: CtSeries) -> list[tuple[str, bool]]:
    """Text and doubt of each remark."""
    return [(remark.text, remark.doubtful) for remark in series.remarks]


def scan_tree(folder: Path, **options) -> DicomSeries:
    """Scan all files below a folder as one series, as `find_sources` does for files of equal UIDs."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.dcm"))
    return scan_series(LocalTree(folder).files("", names).list(), **options)
