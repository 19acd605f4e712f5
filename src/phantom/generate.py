"""From a plan to a folder in the competition's layout: in parallel, resumable, the same bytes every time."""

import json
import shutil

import cv2
from joblib import Parallel, delayed

from src.core.config import plain_options
from src.core.errors import UserError
from src.core.files import write_json
from src.core.log import progress
from src.phantom.cohort import PatientPlan, plan_cohort, stream
from src.phantom.dicom_writer import Storage, write_series
from src.phantom.options import PhantomOptions
from src.phantom.scan import SeriesVolume, body_of, generate_series, scan_of
from src.phantom.tables import TABLES, SeriesRecord, write_segmentation, write_tables

MARKER = "phantom.json"  # the options that made the folder; written first
PARTIAL = ".partial"  # series under way; a finished one is renamed out of it


def generate_dataset(options: PhantomOptions) -> list[PatientPlan]:
    """Write the whole data set into `options.output`, or what is missing of it, and return the plan.

    Raises:
        UserError: the folder holds something else, or a phantom made with other options.
    """
    plans = plan_cohort(options)
    _claim(options)
    if all((options.output / table).exists() for table in TABLES):
        return plans
    work = [(plan, number) for plan in plans for number in range(len(plan.series))]
    tasks = (delayed(write_one_series)(plan, number, options) for plan, number in work)
    done = Parallel(n_jobs=options.jobs, return_as="generator")(tasks)
    records = list(progress(done, total=len(work), desc="series"))
    shutil.rmtree(options.output / PARTIAL, ignore_errors=True)
    write_tables(options.output, plans, records)
    return plans


def write_one_series(plan: PatientPlan, number: int, options: PhantomOptions) -> SeriesRecord:
    """Make series `number` of a patient; write its segmentation, and its images by one rename if missing."""
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
        rng = stream(options.seed, plan.index, f"bits {number}")
        write_series(partial, volume.hu, volume.scan, storage, plan.patient_id, series.series_id, rng)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(folder)
    return _record(plan, number, volume, storage)


def storage_of(plan: PatientPlan, number: int, options: PhantomOptions) -> Storage:
    """The storage quirks of a patient's series `number`."""
    scan = scan_of(plan, number, body_of(plan, options.seed), options)
    return Storage.draw(scan.shape[0], stream(options.seed, plan.index, f"storage {number}"))


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


def _claim(options: PhantomOptions) -> None:
    """Mark the output folder as this phantom's, or refuse it."""
    folder, marker = options.output, options.output / MARKER
    recipe = {key: value for key, value in plain_options(options).items() if key not in ("output", "jobs")}
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give --output a folder")
    if marker.exists():
        made_with = json.loads(marker.read_text(encoding="utf-8"))
        changed = [key for key in recipe if made_with.get(key) != recipe[key]]
        if changed:
            name = changed[0]
            raise UserError(
                f"{folder} holds a phantom made with {name} {made_with.get(name)}, not {recipe[name]}: "
                "choose another --output"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and no phantom: choose a new folder for --output")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(recipe, marker)
