"""Options of `prepare_data.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.core.config import check_range

WindowName = Literal["soft", "organ", "wide"]


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `prepare_data.py`."""

    input: Path
    """The competition's folder or zip, a folder tree or zip of DICOM files, or a folder of NIfTI volumes."""

    output: Path
    """Prepared data set to create or to complete."""

    windows: tuple[WindowName, ...] = ("soft", "organ", "wide")
    """One to three CT windows, each a channel: soft (50/400), organ (80/160), wide (-50/1400)."""

    size: int = 256
    """Side of the square images in pixels; smaller is faster, larger shows finer injuries."""

    split: Literal["train", "test"] | None = None
    """Which images to prepare; default: train_images if present, else test_images."""

    spacing_z_mm: float | None = None
    """Keep about one slice per this many mm; default: all slices."""

    count: int | None = None
    """Keep this many slices per series, evenly spaced; default: all slices."""

    masks: Path | None = None
    """Folder of segmentations, .nii or .nii.gz, with the names of the volumes or series; files of one organ
    each in folders with these names."""

    mask_ids: Path | None = None
    """YAML table of their ids, such as configs/masks/totalsegmentator.yaml; default: nnU-Net's dataset.json
    beside --masks, else the competition's ids."""

    source_window: str | None = None
    """Window that 8-bit images were made with: a name, or centre/width such as 40/350."""

    jobs: int = 0
    """Number of series prepared in parallel; 0 uses every core."""

    cluster: str | None = None
    """Address of a Dask scheduler, such as tcp://10.0.0.1:8786, whose workers do the preparation."""

    overwrite: bool = False
    """Delete the prepared data set at --output and start from scratch."""

    preview: bool = False
    """Write a contact sheet of every series to preview/."""

    def __post_init__(self) -> None:
        check_range(self, "size", at_least=16, at_most=2048)
        check_range(self, "jobs", at_least=0)
        if not 1 <= len(self.windows) <= 3 or len(set(self.windows)) != len(self.windows):
            given = " ".join(self.windows) or "none"
            raise ValueError(f"option --windows takes one to three different windows, got: {given}")
