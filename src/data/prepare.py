"""One series, from DICOM files to grey slices: written to disk, or kept in memory for inference.

Both ways go through the same crop and windows, so a model sees at inference what it saw in training. Slices
stream: whatever the length of a series, one slice is in memory at a time (a few small boxes during the crop).
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.core.files import write_json, write_table
from src.data.crop import Crop, body_crop
from src.data.dicom import FAST_READERS, DicomError, Reader, read_hu
from src.data.nifti import LabelVolume, NiftiError
from src.data.rsna import SeriesSource
from src.data.series import Rejected, Series, SeriesError, scan_series
from src.data.stack import (
    even_indices,
    image_folder,
    mask_folder,
    slice_name,
    whole_folder,
    write_masks,
    write_png,
)
from src.data.windows import Window, apply_windows, get_windows

_CROP_SLICES = 64  # enough to find the body, and decoded twice at no more than this cost


@dataclass(frozen=True)
class PrepareJob:
    """What is the same for every series of a run."""

    output: Path
    windows: tuple[Window, ...]
    size: int
    readers: tuple[Reader, ...] = FAST_READERS


def load_stack(
    folder: Path, windows: Sequence[str], size: int, count: int | None = None
) -> tuple[np.ndarray, pd.DataFrame]:
    """Prepare a folder of DICOM files in memory, decoding only the slices that are asked for.

    Args:
        folder: one series, `*.dcm`.
        windows: names of `src.data.windows.WINDOWS`.
        size: of the square output, in pixels.
        count: evenly spaced slices to take (see `even_indices`), all if None.

    Returns:
        uint8 (T, size, size, C), head to feet, equal to the PNGs that `prepare_series` writes; and a table,
        a row a slice: index (in the series), instance_number, z_mm, source. A slice that cannot be decoded is
        replaced by the nearest one that can be.

    Raises:
        SeriesError: no usable file, not axial, or no slice that can be decoded.
    """
    series = scan_series(Path(folder))
    crop = find_crop(series)
    wanted = np.arange(len(series)) if count is None else even_indices(len(series), count)
    chosen_windows = get_windows(tuple(windows))
    decoded: dict[int, np.ndarray | None] = {}

    def decode(index: int) -> np.ndarray | None:
        if index not in decoded:
            try:
                decoded[index] = _grey_slice(series, index, crop, chosen_windows, size, FAST_READERS)
            except DicomError:
                decoded[index] = None
        return decoded[index]

    used = [_nearest_decodable(int(index), len(series), decode) for index in wanted]
    images = np.stack([decoded[index] for index in used])
    return images, _slice_table(series, used).assign(index=used)


def find_crop(series: Series, readers: tuple[Reader, ...] = FAST_READERS) -> Crop:
    """The body's square from at most 64 evenly spaced slices that can be decoded."""

    def slices() -> Iterator[np.ndarray]:
        for index in even_indices(len(series), min(len(series), _CROP_SLICES)):
            try:
                yield series.orient(read_hu(series.headers[index], readers))
            except DicomError:
                continue

    return body_crop(slices(), series.pixel_mm, series.shape)


def prepare_series(source: SeriesSource, job: PrepareJob) -> dict[str, Any]:
    """Write the images, tables and masks of one series; a series that is there already is left as it is.

    Returns:
        {"row": the series' row of series.csv, "rejected": rows of rejected.csv}.

    Raises:
        SeriesError: the series cannot be prepared; nothing of it is left behind.
    """
    folder = image_folder(job.output, source.patient_id, source.series_id)
    if not folder.is_dir():
        with whole_folder(folder) as partial:
            series = scan_series(source.folder, job.readers)
            crop = find_crop(series, job.readers)
            used, unreadable = _write_slices(partial, series, crop, job)
            write_table(_slice_table(series, used), partial / "slices.csv")
            masks_problem = _write_source_masks(source, series, used, crop, job)
            rejected = sorted([*series.rejected, *unreadable], key=lambda item: item.source)
            notes = [f"files left out: {len(rejected)}"] if rejected else []
            row = {
                "patient_id": source.patient_id,
                "series_id": source.series_id,
                "slices": len(used),
                "spacing_z_mm": round(series.spacing_z_mm, 4),
                "pixel_mm": round(crop.width * series.pixel_mm[1] / job.size, 6),
                **{f"crop_{key}": value for key, value in asdict(crop).items()},
                "source_rows": series.shape[0],
                "source_cols": series.shape[1],
                "orientation": series.orientation,
                "masks": source.segmentation is not None and masks_problem is None,
                "status": "ok",
                "reason": "; ".join(notes + ([masks_problem] if masks_problem else [])),
            }
            write_json({"row": row, "rejected": [asdict(item) for item in rejected]}, partial / "series.json")
    return json.loads((folder / "series.json").read_text(encoding="utf-8"))


def _write_slices(
    folder: Path, series: Series, crop: Crop, job: PrepareJob
) -> tuple[list[int], list[Rejected]]:
    """Write every slice that can be decoded, numbered without gaps; its indices, and files that failed."""
    used: list[int] = []
    unreadable: list[Rejected] = []
    for index, header in enumerate(series.headers):
        try:
            image = _grey_slice(series, index, crop, job.windows, job.size, job.readers)
        except DicomError as error:
            unreadable.append(Rejected(header.path.name, str(error)))
            continue
        write_png(folder / slice_name(len(used)), image)
        used.append(index)
    if not used:
        raise SeriesError(f"no slice can be decoded: {unreadable[0].reason}")
    return used, unreadable


def _write_source_masks(
    source: SeriesSource, series: Series, used: list[int], crop: Crop, job: PrepareJob
) -> str | None:
    """Write the segmentation on the grid of the images; what is wrong with it, if anything."""
    if source.segmentation is None:
        return None
    try:
        volume = LabelVolume(source.segmentation)
    except NiftiError as error:
        return str(error)
    planes = (crop.plane(series.plane(index), job.size) for index in used)
    found = False

    def masks() -> Iterator[np.ndarray]:
        nonlocal found
        for plane in planes:
            mask = volume.sample(plane, job.size, job.size)
            found = found or bool(mask.any())
            yield mask

    folder = mask_folder(job.output, source.patient_id, source.series_id)
    write_masks(folder, masks())
    if not found:  # of another patient, or with a damaged affine: no masks are better than empty ones
        shutil.rmtree(folder)
        return "no organ of the segmentation lies on the slices"
    return None


def _grey_slice(
    series: Series,
    index: int,
    crop: Crop,
    windows: tuple[Window, ...],
    size: int,
    readers: tuple[Reader, ...],
) -> np.ndarray:
    """uint8 (size, size, C)."""
    hu = series.orient(read_hu(series.headers[index], readers))
    return apply_windows(crop.resize(hu, size), windows)


def _nearest_decodable(index: int, n_slices: int, decode: Any) -> int:
    for distance in range(n_slices):
        for neighbour in (index - distance, index + distance):
            if 0 <= neighbour < n_slices and decode(neighbour) is not None:
                return neighbour
    raise SeriesError("no slice can be decoded")


def _slice_table(series: Series, used: list[int]) -> pd.DataFrame:
    headers = [series.headers[index] for index in used]
    return pd.DataFrame(
        {
            "index": range(len(used)),
            "instance_number": [header.instance_number for header in headers],
            "z_mm": [round(float(series.z_mm[index]), 4) for index in used],
            "source": [header.path.name for header in headers],
        }
    )
