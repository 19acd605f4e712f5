"""The tables and segmentations that come with the images, in the competition's columns and types."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from src.core.files import write_table
from src.core.targets import COLUMNS, GROUPS
from src.ct.nifti import write_label_volume
from src.phantom.cohort import PatientPlan, label_table
from src.phantom.shapes import Array
from src.phantom.voxel_grid import Scan

TABLES = (
    "train.csv",
    "train_series_meta.csv",
    "test_series_meta.csv",
    "image_level_labels.csv",
    "test_labels.csv",
    "sample_submission.csv",
)


@dataclass(frozen=True)
class SeriesRecord:
    """What the tables say of one series. `injured_instances` holds (instance number, injury name)."""

    patient_id: int
    series_id: int
    split: str
    aortic_hu: float
    incomplete_organ: bool
    injured_instances: tuple[tuple[int, str], ...]


def write_tables(folder: Path, plans: list[PatientPlan], records: list[SeriesRecord]) -> None:
    """Write the six tables into `folder`, `sample_submission.csv` last: with it, the data set is complete."""
    columns = ["patient_id", "series_id", "aortic_hu", "incomplete_organ"]
    rows = [
        (r.split, r.patient_id, r.series_id, r.aortic_hu, int(r.incomplete_organ))
        for r in sorted(records, key=lambda r: (r.patient_id, r.series_id))
    ]
    meta = pd.DataFrame(rows, columns=["split", *columns])
    train, test = (meta[meta.split == split][columns] for split in ("train", "test"))
    marks = [
        (r.patient_id, r.series_id, number, name)
        for r in sorted(records, key=lambda r: (r.patient_id, r.series_id))
        if r.split == "train"
        for number, name in sorted(r.injured_instances)
    ]
    image_level = pd.DataFrame(marks, columns=["patient_id", "series_id", "instance_number", "injury_name"])
    hidden = label_table(plans, "test")
    sample = hidden[["patient_id"]].assign(
        **{column: 1 / len(group) for group in GROUPS.values() for column in group}
    )
    write_table(label_table(plans, "train"), folder / "train.csv")
    write_table(train, folder / "train_series_meta.csv")
    write_table(test.drop(columns="incomplete_organ"), folder / "test_series_meta.csv")
    write_table(image_level, folder / "image_level_labels.csv")
    write_table(hidden, folder / "test_labels.csv")
    write_table(sample[["patient_id", *COLUMNS]], folder / "sample_submission.csv")


def write_segmentation(path: Path, labels: Array, scan: Scan) -> None:
    """Write an organ label map (Z, Y, X) as NIfTI whose voxel axes run to the left, the front and the head.

    That is unlike the DICOM stack (from the head down, from the front back), so only the affine can place it.
    """
    voxels = np.ascontiguousarray(labels.transpose(2, 1, 0)[:, ::-1, ::-1])
    (nz, ny, _), (dz, dy, dx) = scan.shape, scan.spacing_mm
    x, y, top = scan.first_voxel_mm
    lps_affine = np.diag([dx, -dy, dz, 1.0])
    lps_affine[:3, 3] = x, y + dy * (ny - 1), top - dz * (nz - 1)
    write_label_volume(path, voxels, lps_affine)
