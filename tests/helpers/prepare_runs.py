"""Series prepared from files, and the images that were written."""

from pathlib import Path
from typing import Any

import numpy as np

import prepare_data
from src.ct.series import SeriesSource
from src.ct.storage import LocalFile, LocalFolder
from src.ct.windows import get_windows
from src.data.png import read_png
from src.data.prepared import PreparedDataset, image_folder
from src.prepare.write_series import PrepareJob, prepare_series

NAMES = ("soft", "organ", "wide")


def source_of(folder: Path, segmentation: Path | None = None) -> SeriesSource:
    labels = LocalFile(segmentation) if segmentation else None
    return SeriesSource("1", "2", LocalFolder(folder), labels)


def prepare(
    folder: Path, output: Path, segmentation: Path | None = None, size: int = 48
) -> tuple[dict[str, Any], np.ndarray]:
    """Outcome of `prepare_series` with three windows, and the images (slices, size, size, 3)."""
    source = source_of(folder, segmentation)
    outcome = prepare_series(source, PrepareJob(output, get_windows(NAMES), size))
    return outcome, read_stack(image_folder(output, "1", "2"))


def prepare_input(source: Path, output: Path, *arguments: object) -> PreparedDataset:
    """Run prepare_data.py on one core, at 48 px."""
    options = ("--input", source, "--output", output, "--size", 48, "--jobs", 1, *arguments)
    prepare_data.main(list(map(str, options)))
    return PreparedDataset.open(output)


def read_stack(folder: Path) -> np.ndarray:
    """Every PNG of a series' folder, in order."""
    return np.stack([read_png(path) for path in sorted(folder.glob("*.png"))])
