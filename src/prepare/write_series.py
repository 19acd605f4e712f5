"""Write one series to disk: images, tables, masks on the same grid, and a contact sheet."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.core.files import atomic_path, discard, whole_folder, write_json, write_table
from src.core.isolation import SILENCE_LIMIT_S, Report, no_report
from src.ct.label_volume import LabelVolume, OrganVolumes, open_labels
from src.ct.nifti import NiftiError
from src.ct.series import (
    READ_ALL,
    CtSeries,
    OrganFiles,
    ReadSettings,
    Rejected,
    SeriesError,
    SeriesSource,
    SliceError,
)
from src.ct.storage import StoredFile, UnreadableFile
from src.ct.windows import Window
from src.data.png import write_png
from src.data.prepared import image_folder, mask_folder, slice_name, write_masks
from src.data.preview import contact_sheet
from src.data.selection import ALL_SLICES, SliceSelection
from src.prepare.grey_slices import (
    Crop,
    ExaminedSeries,
    check_windows,
    examine,
    open_series,
    output_pixel_mm,
    read_grey_slices,
    slice_table,
    spacing_z_mm,
)
from src.prepare.spacing import describe_gaps

SERIES_COLUMNS = (
    *("patient_id", "series_id", "slices", "spacing_z_mm", "pixel_mm"),
    *("crop_left", "crop_top", "crop_width", "crop_height", "source_rows", "source_cols"),
    *("orientation", "masks", "status", "reason"),
)
"""Columns of series.csv. spacing_z_mm refers to the source, whichever slices are kept."""

_BEGINNING_BYTES = 1 << 16


@dataclass(frozen=True)
class PrepareJob:
    """Settings that are the same for all series of a run."""

    output: Path
    windows: tuple[Window, ...]
    size: int
    selection: SliceSelection = ALL_SLICES
    source_window: Window | None = None
    """Window that 8-bit sources were made with."""
    mask_ids: Mapping[int, int] | None = None
    """Kit label of each id of a segmentation; None if the ids are already the kit's."""
    preview: bool = False
    silence_limit_s: float = SILENCE_LIMIT_S
    """Seconds that a decoder may take for one slice before it is stopped."""


def prepare_series(
    source: SeriesSource, job: PrepareJob, settings: ReadSettings = READ_ALL, report: Report = no_report
) -> dict[str, Any]:
    """Write the images, tables and masks of one series, unless an earlier run has written them.

    Args:
        settings: readers to use and files to skip.
        report: called with the name of each file and slice that is read.

    Returns:
        The content of series.json: {"row": the row of series.csv, "rejected": rows of rejected.csv, ...}.

    Raises:
        SeriesError: the series cannot be prepared; none of its output is kept.
    """
    folder = image_folder(job.output, source.patient_id, source.series_id)
    if finished(source, job) is None:
        _write_series(folder, source, job, settings, report)
    if job.preview:
        _write_preview(source, job)
    return json.loads((folder / "series.json").read_text(encoding="utf-8"))


def _write_series(
    folder: Path, source: SeriesSource, job: PrepareJob, settings: ReadSettings, report: Report
) -> None:
    with (
        whole_folder(folder) as partial,
        open_series(source, job.source_window, settings, report) as series,
    ):
        check_windows(series, job.windows)
        examined = examine(series)
        series, crop = examined.series, examined.crop
        used, unreadable = _write_slices(partial, examined, job)
        write_table(slice_table(series, used), partial / "slices.csv")
        masks_at = mask_folder(job.output, source.patient_id, source.series_id)
        discard(masks_at)
        masks_problem = _write_source_masks(masks_at, source, series, used, crop, job, report)
        rejected = [*series.rejected, *settings.left_out, *unreadable]
        rejected.sort(key=lambda item: item.source)
        numbers = [series.instance_number(index) for index in range(len(series.z_mm))]
        notes = {
            "a decoder crashed or hung: read with pydicom": settings.pydicom_only,
            f"files left out: {len(rejected)}": rejected,
            **dict.fromkeys(describe_gaps(series.z_mm, numbers), True),
            masks_problem: masks_problem,
            **{remark.text: True for remark in examined.remarks},
        }
        row = {
            "patient_id": source.patient_id,
            "series_id": source.series_id,
            "slices": len(used),
            "spacing_z_mm": round(spacing_z_mm(series), 4),
            "pixel_mm": output_pixel_mm(series, crop, job.size),
            **{f"crop_{key}": value for key, value in asdict(crop).items()},
            "source_rows": series.shape[0],
            "source_cols": series.shape[1],
            "orientation": series.orientation,
            "masks": source.segmentation is not None and masks_problem is None,
            "status": "doubtful" if any(remark.doubtful for remark in examined.remarks) else "ok",
            "reason": "; ".join(note for note, applies in notes.items() if applies),
        }
        outcome = {
            "row": row,
            "rejected": [asdict(item) for item in rejected],
            "stored_bytes": _stored_bytes(partial) + _stored_bytes(masks_at),
            **_fingerprint(source, job),
        }
        write_json(outcome, partial / "series.json")


def _write_slices(
    folder: Path, examined: ExaminedSeries, job: PrepareJob
) -> tuple[list[int], list[Rejected]]:
    """Write every selected slice that can be decoded, numbered without gaps.

    Returns:
        Indices of the slices written, and the slices that cannot be decoded.
    """
    series = examined.series
    used: list[int] = []
    unreadable: list[Rejected] = []
    chosen = job.selection.choose(series.z_mm).tolist()
    for index, image in read_grey_slices(examined, chosen, job.windows, job.size):
        if isinstance(image, SliceError):
            unreadable.append(Rejected(series.source(index), str(image)))
        else:
            write_png(folder / slice_name(len(used)), image)
            used.append(index)
    if not used:
        raise SeriesError(f"no slice can be decoded: {unreadable[0].reason}")
    return used, unreadable


def _write_source_masks(
    folder: Path,
    source: SeriesSource,
    series: CtSeries,
    used: Sequence[int],
    crop: Crop,
    job: PrepareJob,
    report: Report,
) -> str | None:
    """Write the segmentation on the grid of the images; return the reason if it cannot be used."""
    if source.segmentation is None:
        return None
    found = False

    def masks(volume: LabelVolume | OrganVolumes) -> Iterator[np.ndarray]:
        nonlocal found
        for index in used:
            report(f"mask of {series.source(index)}")
            mask = volume.sample(crop.plane(series.plane(index), job.size), job.size, job.size)
            found = found or bool(mask.any())
            yield mask

    try:
        with open_labels(source.segmentation, job.mask_ids) as volume:
            write_masks(folder, masks(volume))
    except NiftiError as error:
        return str(error)
    if not found:  # of another patient, or a damaged affine: better no masks than empty ones
        discard(folder)
        return "no organ of the segmentation lies on the slices"
    return None


def _stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.png"))


def preview_path(source: SeriesSource, output: Path) -> Path:
    """Path of the contact sheet of a series."""
    return output / "preview" / source.patient_id / f"{source.series_id}.png"


def _write_preview(source: SeriesSource, job: PrepareJob) -> None:
    """Draw a contact sheet at preview/<patient_id>/<series_id>.png, unless it is newer than the series."""
    path = preview_path(source, job.output)
    series = image_folder(job.output, source.patient_id, source.series_id) / "series.json"
    if path.exists() and path.stat().st_mtime_ns >= series.stat().st_mtime_ns:
        return
    names = [window.name for window in job.windows]
    with atomic_path(path) as temporary:
        write_png(temporary, contact_sheet(job.output, source.patient_id, source.series_id, names, job.size))


def finished(source: SeriesSource, job: PrepareJob) -> dict[str, Any] | None:
    """Return the outcome of a series that an earlier run finished, or None if it must be prepared.

    An existing folder is complete, so the check is cheap: a series is prepared again if its number of files
    or its segmentation changed, or the options that affect how they are read.
    """
    outcome = read_outcome(image_folder(job.output, source.patient_id, source.series_id))
    if outcome is None:
        return None
    try:
        fingerprint = _fingerprint(source, job)
    except UnreadableFile:
        return outcome
    return outcome if all(outcome.get(key) == value for key, value in fingerprint.items()) else None


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """Read series.json of a series' folder; None if it is missing, damaged, or does not match the images."""
    try:
        outcome = json.loads((folder / "series.json").read_text(encoding="utf-8"))
        n_images = sum(1 for _ in folder.glob("*.png"))
        return outcome if outcome["row"]["slices"] == n_images else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _fingerprint(source: SeriesSource, job: PrepareJob) -> dict[str, Any]:
    """Return the values that determine whether a finished series must be prepared again, as JSON types."""
    window = job.source_window
    ids = None if source.segmentation is None or job.mask_ids is None else sorted(job.mask_ids.items())
    files = source.files.list()
    return {
        "files": len(files),
        "volume": _beginning(files[0]) if source.kind == "nifti" else None,
        "segmentation": _names_and_beginnings(source.segmentation),
        "mask_ids": ids and [list(pair) for pair in ids],
        "source_window": window and [window.centre_hu, window.width_hu],
    }


def _names_and_beginnings(segmentation: StoredFile | OrganFiles | None) -> list[str] | None:
    if segmentation is None:
        return None
    files = segmentation.files if isinstance(segmentation, OrganFiles) else (segmentation,)
    return [text for file in files for text in (file.name, _beginning(file))]


def _beginning(file: StoredFile) -> str:
    """Checksum of the first bytes of a file: of a volume, its header and part of its voxels."""
    return hashlib.sha256(file.read(_BEGINNING_BYTES)).hexdigest()[:16]
