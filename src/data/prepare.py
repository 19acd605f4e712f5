"""One series, from its files to grey slices: written to disk, or kept in memory for inference.

Both ways go through the same crop and windows, so a model sees at inference what it saw in training. Slices
stream: whatever the length of a series, one slice is in memory at a time, and a few during the crop.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.core.files import atomic_path, write_json, write_table
from src.data.crop import RESIZED_TOGETHER, Crop, body_crop
from src.data.dicom import FAST_READERS, SAFE_READERS
from src.data.dicom_series import scan_series
from src.data.isolation import SILENCE_LIMIT_S, report_step
from src.data.nifti import LabelVolume, NiftiError
from src.data.nifti_series import open_nifti
from src.data.preview import contact_sheet
from src.data.selection import ALL_SLICES, SliceSelection
from src.data.series import CtSeries, Rejected, SeriesError, SliceError, spacing_z_mm
from src.data.series_source import SeriesSource
from src.data.stack import (
    even_indices,
    image_folder,
    mask_folder,
    slice_name,
    whole_folder,
    write_masks,
    write_png,
)
from src.data.storage import StoredFile, UnreadableFile
from src.data.windows import AIR_HU, Window, apply_windows

_CROP_SLICES = 64  # enough to find the body
_KEPT_BYTES = 64 << 20  # of slices decoded for the crop, so that most need not be decoded again
_GAP = 1.5  # neighbouring slices further apart than this times the median have one missing between them


@dataclass(frozen=True)
class PrepareJob:
    """What is the same for every series of a run."""

    output: Path
    windows: tuple[Window, ...]
    size: int
    selection: SliceSelection = ALL_SLICES
    source_window: Window | None = None
    """The window that 8-bit sources were made with."""
    mask_ids: Mapping[int, int] | None = None
    """Label of each id of a segmentation; None where they are the kit's own."""
    preview: bool = False
    silence_limit_s: float = SILENCE_LIMIT_S
    """How long a decoder may be busy with one slice before it is stopped."""


@dataclass(frozen=True)
class Caution:
    """What earlier attempts at a series have taught: how to read it without a crash."""

    pydicom_only: bool = False
    left_out: tuple[Rejected, ...] = ()
    """Files that crash every reader, or keep it busy forever."""


NO_CAUTION = Caution()


@contextmanager
def open_series(
    source: SeriesSource, source_window: Window | None = None, caution: Caution = NO_CAUTION
) -> Iterator[CtSeries]:
    """Open the series of a source, without decoding a pixel.

    Raises:
        SeriesError: no usable file, or not axial.
    """
    try:
        files = source.files.list()
    except UnreadableFile as error:
        raise SeriesError(str(error)) from error
    if source.kind == "nifti":
        with open_nifti(files[0], source_window) as series:
            yield series
        return
    readers = SAFE_READERS if caution.pydicom_only else FAST_READERS
    left_out = {item.source for item in caution.left_out}
    yield scan_series(_announced(files), readers, source_window, left_out)


def _announced(files: Sequence[StoredFile]) -> Iterator[StoredFile]:
    for file in files:
        report_step(file.name)
        yield file


class GreySlices:
    """Grey slices of an open series: cut to the body, resized, windowed."""

    def __init__(self, series: CtSeries, windows: tuple[Window, ...], size: int):
        """Find the body.

        Raises:
            SeriesError: an 8-bit source does not hold what a window shows.
        """
        for window in windows:
            if series.source_window is not None and not series.source_window.contains(window):
                raise SeriesError(
                    f"window {window.name} shows HU outside of the window {series.source_window.name} "
                    "that the 8-bit source was made with"
                )
        self._series, self._windows, self._size = series, windows, size
        self._decoded: dict[int, np.ndarray] = {}
        lowest_hu = series.source_window.lowest_hu if series.source_window else AIR_HU
        self.crop = body_crop(self._crop_slices(), series.pixel_mm, series.shape, lowest_hu)

    def read(self, index: int) -> np.ndarray:
        """uint8 (size, size, C). Raises `SliceError`."""
        return apply_windows(self.crop.resize(self._hu(index), self._size), self._windows)

    def read_all(self, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray | SliceError]]:
        """Each index with what `read` gives or raises; faster, and four slices are in memory at a time."""
        for start in range(0, len(indices), RESIZED_TOGETHER):
            few = indices[start : start + RESIZED_TOGETHER]
            hu: dict[int, np.ndarray] = {}
            failed: dict[int, SliceError] = {}
            for index in few:
                try:
                    hu[index] = self._hu(index)
                except SliceError as error:
                    failed[index] = error
            cuts = dict(zip(hu, self.crop.resize_all(list(hu.values()), self._size), strict=True))
            for index in few:
                yield index, failed.get(index) or apply_windows(cuts[index], self._windows)

    def _crop_slices(self) -> Iterator[np.ndarray]:
        n_slices, kept_bytes = len(self._series.z_mm), 0
        for index in even_indices(n_slices, min(n_slices, _CROP_SLICES)):
            try:
                hu = self._read(int(index))
            except SliceError:
                continue
            kept_bytes += hu.nbytes
            if kept_bytes <= _KEPT_BYTES:
                self._decoded[int(index)] = hu
            yield hu

    def _hu(self, index: int) -> np.ndarray:
        hu = self._decoded.pop(index, None)
        return self._read(index) if hu is None else hu

    def _read(self, index: int) -> np.ndarray:
        report_step(self._series.source(index))
        return self._series.read(index)


def load_stack(
    source: SeriesSource,
    windows: tuple[Window, ...],
    size: int,
    count: int | None = None,
    caution: Caution = NO_CAUTION,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Prepare a series in memory, decoding only the slices that are asked for.

    Args:
        size: of the square output, in pixels.
        count: evenly spaced slices to take (see `even_indices`), all if None.

    Returns:
        uint8 (T, size, size, C), head to feet, equal to the PNGs that `prepare_series` writes; and a table,
        a row a slice: index (in the series), instance_number, z_mm, source. A slice that cannot be decoded is
        replaced by the nearest one that can be.

    Raises:
        SeriesError: no usable file, not axial, or no slice that can be decoded.
    """
    with open_series(source, caution=caution) as series:
        slices = GreySlices(series, windows, size)
        n_slices = len(series.z_mm)
        wanted = np.arange(n_slices) if count is None else even_indices(n_slices, count)
        decoded: dict[int, np.ndarray | None] = {}

        def decode(index: int) -> np.ndarray | None:
            if index not in decoded:
                try:
                    decoded[index] = slices.read(index)
                except SliceError:
                    decoded[index] = None
            return decoded[index]

        used = [_nearest_decodable(int(index), n_slices, decode) for index in wanted]
        return np.stack([decoded[index] for index in used]), _slice_table(series, used).assign(index=used)


def prepare_series(source: SeriesSource, job: PrepareJob, caution: Caution = NO_CAUTION) -> dict[str, Any]:
    """Write the images, tables and masks of one series; a series that is there already is left as it is.

    Returns:
        What series.json holds: {"row": the series' row of series.csv, "rejected": rows of rejected.csv, ...}.

    Raises:
        SeriesError: the series cannot be prepared; nothing of it is left behind.
    """
    folder = image_folder(job.output, source.patient_id, source.series_id)
    if finished(source, job.output) is None:
        _prepare_folder(folder, source, job, caution)
    if job.preview:
        _write_preview(source, job)
    return json.loads((folder / "series.json").read_text(encoding="utf-8"))


def _prepare_folder(folder: Path, source: SeriesSource, job: PrepareJob, caution: Caution) -> None:
    with whole_folder(folder) as partial, open_series(source, job.source_window, caution) as series:
        slices = GreySlices(series, job.windows, job.size)
        used, unreadable = _write_slices(partial, series, slices, job)
        write_table(_slice_table(series, used), partial / "slices.csv")
        masks_at = mask_folder(job.output, source.patient_id, source.series_id)
        shutil.rmtree(masks_at, ignore_errors=True)
        masks_problem = _write_source_masks(masks_at, source, series, used, slices.crop, job)
        rejected = sorted([*series.rejected, *caution.left_out, *unreadable], key=lambda item: item.source)
        gaps_mm = -np.diff(series.z_mm)
        wide_gaps = int((gaps_mm > _GAP * np.median(gaps_mm)).sum()) if len(gaps_mm) else 0
        notes = {
            "a decoder crashed or hung: read with pydicom": caution.pydicom_only,
            f"files left out: {len(rejected)}": rejected,
            f"gaps of missing slices: {wide_gaps}": wide_gaps,
            masks_problem: masks_problem,
        }
        row = {
            "patient_id": source.patient_id,
            "series_id": source.series_id,
            "slices": len(used),
            "spacing_z_mm": round(spacing_z_mm(series), 4),
            "pixel_mm": round(slices.crop.width * series.pixel_mm[1] / job.size, 6),
            **{f"crop_{key}": value for key, value in asdict(slices.crop).items()},
            "source_rows": series.shape[0],
            "source_cols": series.shape[1],
            "orientation": series.orientation,
            "masks": source.segmentation is not None and masks_problem is None,
            "status": "ok",
            "reason": "; ".join(note for note, applies in notes.items() if applies),
        }
        outcome = {
            "row": row,
            "rejected": [asdict(item) for item in rejected],
            "stored_bytes": _stored_bytes(partial) + _stored_bytes(masks_at),
            **_fingerprint(source),
        }
        write_json(outcome, partial / "series.json")


def _stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.png"))


def preview_path(source: SeriesSource, output: Path) -> Path:
    """Where the contact sheet of a series is."""
    return output / "preview" / f"{source.patient_id}_{source.series_id}.png"


def _write_preview(source: SeriesSource, job: PrepareJob) -> None:
    """A contact sheet at preview/<patient_id>_<series_id>.png, unless it is newer than the series."""
    path = preview_path(source, job.output)
    series = image_folder(job.output, source.patient_id, source.series_id) / "series.json"
    if path.exists() and path.stat().st_mtime_ns >= series.stat().st_mtime_ns:
        return
    names = [window.name for window in job.windows]
    with atomic_path(path) as temporary:
        write_png(temporary, contact_sheet(job.output, source.patient_id, source.series_id, names, job.size))


def finished(source: SeriesSource, output: Path) -> dict[str, Any] | None:
    """What an earlier run wrote of a series, or None where it must be prepared.

    A folder that exists is whole, so the check is cheap: a series is prepared again only where its number of
    files, or its segmentation, is another than it was.
    """
    try:
        path = image_folder(output, source.patient_id, source.series_id) / "series.json"
        outcome = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    try:
        fingerprint = _fingerprint(source)
    except UnreadableFile:
        return outcome
    return outcome if all(outcome.get(key) == value for key, value in fingerprint.items()) else None


def _fingerprint(source: SeriesSource) -> dict[str, Any]:
    return {
        "files": len(source.files.list()),
        "segmentation": source.segmentation.name if source.segmentation else None,
    }


def _write_slices(
    folder: Path, series: CtSeries, slices: GreySlices, job: PrepareJob
) -> tuple[list[int], list[Rejected]]:
    """Write every selected slice that can be decoded, numbered without gaps; its indices, and what failed."""
    used: list[int] = []
    unreadable: list[Rejected] = []
    for index, image in slices.read_all(job.selection.choose(series.z_mm).tolist()):
        if isinstance(image, SliceError):
            unreadable.append(Rejected(series.source(index), str(image)))
        else:
            write_png(folder / slice_name(len(used)), image)
            used.append(index)
    if not used:
        raise SeriesError(f"no slice can be decoded: {unreadable[0].reason}")
    return used, unreadable


def _write_source_masks(
    folder: Path, source: SeriesSource, series: CtSeries, used: Sequence[int], crop: Crop, job: PrepareJob
) -> str | None:
    """Write the segmentation on the grid of the images; what is wrong with it, if anything."""
    if source.segmentation is None:
        return None
    found = False

    def masks(volume: LabelVolume) -> Iterator[np.ndarray]:
        nonlocal found
        for index in used:
            report_step(f"mask of {series.source(index)}")
            mask = volume.sample(crop.plane(series.plane(index), job.size), job.size, job.size)
            found = found or bool(mask.any())
            yield mask

    try:
        with LabelVolume.open(source.segmentation, job.mask_ids) as volume:
            write_masks(folder, masks(volume))
    except NiftiError as error:
        return str(error)
    if not found:  # of another patient, or with a damaged affine: no masks are better than empty ones
        shutil.rmtree(folder)
        return "no organ of the segmentation lies on the slices"
    return None


def _nearest_decodable(index: int, n_slices: int, decode: Any) -> int:
    for distance in range(n_slices):
        for neighbour in (index - distance, index + distance):
            if 0 <= neighbour < n_slices and decode(neighbour) is not None:
                return neighbour
    raise SeriesError("no slice can be decoded")


def _slice_table(series: CtSeries, used: Sequence[int]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "index": range(len(used)),
            "instance_number": [series.instance_number(index) for index in used],
            "z_mm": [round(float(series.z_mm[index]), 4) for index in used],
            "source": [series.source(index) for index in used],
        }
    )
