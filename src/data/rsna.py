"""The competition's folders: <split>_images/<patient_id>/<series_id>/<instance>.dcm and segmentations/."""

from dataclasses import dataclass
from pathlib import Path

from src.core.errors import UserError


@dataclass(frozen=True)
class SeriesSource:
    """A series as found on disk, not read yet."""

    patient_id: str
    series_id: str
    folder: Path
    segmentation: Path | None


def choose_split(raw: Path, split: str | None) -> str:
    """The split to prepare: the one asked for, else "train" where there is one, else "test".

    Raises:
        UserError: no such folder, or no images of the split in it.
    """
    if not raw.is_dir():
        raise UserError(f"no folder {raw} (--input)")
    found = [name for name in ("train", "test") if (raw / f"{name}_images").is_dir()]
    if not found:
        raise UserError(f"{raw} has neither train_images nor test_images (--input)")
    if split is not None and split not in found:
        raise UserError(f"{raw} has no {split}_images; --split {found[0]} is there")
    return split or found[0]


def find_series(raw: Path, split: str) -> list[SeriesSource]:
    """Every series folder of a split, sorted by patient and series.

    Raises:
        UserError: there is none.
    """
    images = raw / f"{split}_images"
    sources = [
        SeriesSource(folder.parent.name, folder.name, folder, _find_segmentation(raw, folder.name))
        for folder in sorted(images.glob("*/*"))
        if folder.is_dir()
    ]
    if not sources:
        raise UserError(f"no series in {images}; expected {images}/<patient_id>/<series_id>/*.dcm")
    return sources


def _find_segmentation(raw: Path, series_id: str) -> Path | None:
    paths = (raw / "segmentations" / f"{series_id}{suffix}" for suffix in (".nii", ".nii.gz"))
    return next((path for path in paths if path.is_file()), None)
