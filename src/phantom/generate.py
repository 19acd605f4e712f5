"""Write a cohort in the competition's layout: images, segmentations, tables; resumable, reproducible."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from src.core.config import plain_options
from src.core.files import write_table
from src.core.log import progress
from src.core.run_folder import ANOTHER_OUTPUT, claim_folder, only_writer
from src.core.targets import COLUMNS, TARGETS
from src.ct.nifti import write_label_volume
from src.phantom.cohort import PatientPlan, label_table, patient_rng, plan_cohort
from src.phantom.dicom_writer import Storage, write_series
from src.phantom.options import PhantomOptions
from src.phantom.scan import SeriesVolume, body_of, generate_series, scan_of
from src.phantom.shapes import Array
from src.phantom.voxel_grid import Scan

PARTIAL = ".partial"  # folder of unfinished series; finished ones are renamed out of it
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
    """Entry of one series in the tables. `injured_instances` contains (instance number, injury name)."""

    patient_id: int
    series_id: int
    split: str
    aortic_hu: float
    incomplete_organ: bool
    injured_instances: tuple[tuple[int, str], ...]


def generate_dataset(options: PhantomOptions) -> list[PatientPlan]:
    """Write the data set into `options.output`, or complete it, and return the plan.

    Raises:
        UserError: the folder has other content, or a phantom with other options.
    """
    plans = plan_cohort(options)
    recipe = {key: value for key, value in plain_options(options).items() if key not in ("output", "jobs")}
    with only_writer(options.output):
        claim_folder(options.output, "phantom.json", recipe, kind="a phantom", advice=ANOTHER_OUTPUT)
        if not all((options.output / table).exists() for table in TABLES):
            work = [(plan, number) for plan in plans for number in range(len(plan.series))]
            tasks = (delayed(write_one_series)(plan, number, options) for plan, number in work)
            done = Parallel(n_jobs=options.jobs, return_as="generator")(tasks)
            records = list(progress(done, total=len(work), desc="series"))
            shutil.rmtree(options.output / PARTIAL, ignore_errors=True)
            write_tables(options.output, plans, records)
    return plans


def write_one_series(plan: PatientPlan, number: int, options: PhantomOptions) -> SeriesRecord:
    """Generate series `number` of a patient; write its segmentation and, by a rename, missing images."""
    cv2.setNumThreads(1)
    series = plan.series[number]
    volume = generate_series(plan, number, options)
    storage = storage_of(plan, number, options)
    if series.segmented:
        write_segmentation(
            options.output / "segmentations" / f"{series.series_id}.nii", volume.labels, volume.scan
        )
    folder = options.output / f"{plan.split}_images" / str(plan.patient_id) / str(series.series_id)
    if not folder.exists():
        partial = options.output / PARTIAL / str(series.series_id)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        rng = patient_rng(options.seed, plan.index, f"bits {number}")
        write_series(partial, volume.hu, volume.scan, storage, plan.patient_id, series.series_id, rng)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(folder)
    return _record(plan, number, volume, storage)


def storage_of(plan: PatientPlan, number: int, options: PhantomOptions) -> Storage:
    """Return the storage variants of a patient's series `number`."""
    scan = scan_of(plan, number, body_of(plan, options.seed), options)
    return Storage.draw(scan.shape[0], patient_rng(options.seed, plan.index, f"storage {number}"))


def _record(plan: PatientPlan, number: int, volume: SeriesVolume, storage: Storage) -> SeriesRecord:
    marks = tuple(
        (instance, name)
        for name, slices in volume.injured_slices.items()
        for instance, k in storage.instances()
        if k in slices
    )
    return SeriesRecord(
        plan.patient_id,
        plan.series[number].series_id,
        plan.split,
        volume.aortic_hu,
        volume.incomplete_organ,
        marks,
    )


def write_tables(folder: Path, plans: list[PatientPlan], records: list[SeriesRecord]) -> None:
    """Write the six tables into `folder`, `sample_submission.csv` last: it marks the data set as complete."""
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
        **{column: 1 / len(columns) for columns in TARGETS.values() for column in columns}
    )
    write_table(label_table(plans, "train"), folder / "train.csv")
    write_table(train, folder / "train_series_meta.csv")
    write_table(test.drop(columns="incomplete_organ"), folder / "test_series_meta.csv")
    write_table(image_level, folder / "image_level_labels.csv")
    write_table(hidden, folder / "test_labels.csv")
    write_table(sample[["patient_id", *COLUMNS]], folder / "sample_submission.csv")


def write_segmentation(path: Path, labels: Array, scan: Scan) -> None:
    """Write an organ label map (Z, Y, X) as NIfTI with voxel axes to the left, the front and the head.

    The DICOM stack has other directions (to the back and the feet), so that only the affine relates them.
    """
    voxels = np.ascontiguousarray(labels.transpose(2, 1, 0)[:, ::-1, ::-1])
    (nz, ny, _), (dz, dy, dx) = scan.shape, scan.spacing_mm
    x, y, top = scan.first_voxel_mm
    lps_affine = np.diag([dx, -dy, dz, 1.0])
    lps_affine[:3, 3] = x, y + dy * (ny - 1), top - dz * (nz - 1)
    write_label_volume(path, voxels, lps_affine)
