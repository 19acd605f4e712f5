"""Write the masks and tables of many series, one folder per series.

The networks process one chunk of slices while worker processes decode the next ones, and a thread cleans and
writes the previous masks. Only a few chunks are in memory, for a series of any length.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.core.files import whole_folder, write_table
from src.core.log import progress
from src.core.runtime import Runtime
from src.data.organ_tables import AREA_COLUMNS, ORGAN_TYPES
from src.data.png import read_png, write_png
from src.data.prepared import PreparedDataset, slice_name
from src.nn.loading import StackLoader
from src.seg.model import SegmenterPair, SegmenterSpec, predict_masks
from src.seg.predict import Chunk, SeriesMasks, SliceStream, with_neighbours

ORGAN_TABLE, AREA_TABLE = "organs.csv", "areas.csv"
"""Tables in the folder of every segmented series."""

_IDS = ("patient_id", "series_id")
TABLE_COLUMNS = MappingProxyType(
    {
        ORGAN_TABLE: (*_IDS, *ORGAN_TYPES),
        AREA_TABLE: (*_IDS, "index", "z_mm", *AREA_COLUMNS.values()),
    }
)
"""Columns of each table."""

_MAX_WAITING = 2
"""Maximum number of chunks whose masks wait to be written."""


@dataclass(frozen=True)
class SegmentedSeries:
    """A series whose masks were written, or the reason why not."""

    patient_id: str
    series_id: str
    reason: str = ""
    """reason why it has no masks; empty if it has"""


def segment_series(
    pair: SegmenterPair,
    spec: SegmenterSpec,
    runtime: Runtime,
    dataset: PreparedDataset,
    series: pd.DataFrame,
    output: Path,
    *,
    chunk: int = 16,
    spacing_mm: float = 0.0,
    workers: int = 1,
) -> Iterator[SegmentedSeries]:
    """Write masks and tables of every series to `output/<patient_id>/<series_id>`, atomically by a rename.

    Existing folders are replaced. A series that cannot be read leaves no files, and its `reason` is set.

    Args:
        pair: pair on the device, in evaluation mode.
        series: usable rows of `dataset.series`.
        chunk: slices per forward pass.
        spacing_mm: about the distance between slices that the networks see; 0: they see all.
        workers: number of processes that read ahead.

    Yields:
        One result per series, in order, once it is written.
    """
    channels = dataset.channels(spec.windows)
    stream = SliceStream(dataset, series, channels, spec.slices, chunk, spacing_mm)
    waiting: deque[Future[SegmentedSeries | None]] = deque()
    # contexts exit in reverse order: the thread ends before the folder of an unfinished series is deleted
    with ExitStack() as stack:
        writer = stack.enter_context(closing(MaskWriter(dataset, series, output)))
        background = ThreadPoolExecutor(max_workers=1)
        stack.callback(background.shutdown, cancel_futures=True)
        for part in progress(StackLoader(stream, workers, batch_size=None), len(stream), "slices"):
            try:
                if part.error:
                    raise UserError(part.error)
                with runtime.autocast():
                    images = with_neighbours(part, runtime.device)
                    masks = predict_masks(pair, images, part.between).cpu().numpy()
            except UserError as error:
                waiting.append(background.submit(writer.fail, part, str(error)))
            except FloatingPointError as error:
                waiting.append(background.submit(writer.fail, part, f"{error}: try --precision fp32"))
            else:
                waiting.append(background.submit(writer.add, part, masks))
            while len(waiting) > _MAX_WAITING:
                if result := waiting.popleft().result():
                    yield result
        for future in waiting:
            if result := future.result():
                yield result


class MaskFolder:
    """The label maps of a series as PNG files, by slice index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, index: int) -> np.ndarray:
        return read_png(self.folder / slice_name(index))

    def __setitem__(self, index: int, mask: np.ndarray) -> None:
        write_png(self.folder / slice_name(index), mask)


class MaskWriter:
    """Writes the masks of one series after another, passed in order and in chunks."""

    def __init__(self, dataset: PreparedDataset, series: pd.DataFrame, output: Path) -> None:
        self.dataset, self.series, self.output = dataset, series, output
        self._failed = -1  # row of the last series that failed
        self._open: AbstractContextManager[Path] | None = None  # the folder of a series, until it is complete
        self._folder = Path()
        self._masks = SeriesMasks(MaskFolder(self._folder))

    def add(self, part: Chunk, masks: np.ndarray) -> SegmentedSeries | None:
        """Write the masks (N, H, W) of a chunk; after the last chunk of a series, clean and measure them."""
        if part.row == self._failed:
            return None
        try:
            return self._add(part, masks)
        except UserError as error:
            return self.fail(part, str(error))
        except Exception:
            self.fail(part, "")  # otherwise the waiting chunks of this series would be written
            raise

    def fail(self, part: Chunk, reason: str) -> SegmentedSeries | None:
        """Delete the output of a chunk's series, and ignore its further chunks."""
        if part.row == self._failed:
            return None
        self._failed = part.row
        self.close()
        row = self.series.iloc[part.row]
        return SegmentedSeries(row["patient_id"], row["series_id"], reason)

    def close(self) -> None:
        """Delete the folder of an incomplete series."""
        if self._open is not None:
            error = UserError("the series is not complete")
            self._open.__exit__(UserError, error, None)
            self._open = None

    def _add(self, part: Chunk, masks: np.ndarray) -> SegmentedSeries | None:
        row = self.series.iloc[part.row]
        if self._open is None:
            partial = whole_folder(self.output / row["patient_id"] / row["series_id"])
            self._folder = partial.__enter__()
            self._open = partial
            self._masks = SeriesMasks(MaskFolder(self._folder))
        self._masks.add(part.first, masks)
        if not part.is_last:
            return None
        self._finish(row)
        self._open.__exit__(None, None, None)
        self._open = None
        return SegmentedSeries(row["patient_id"], row["series_id"])

    def _finish(self, row: pd.Series) -> None:
        z_mm = self.dataset.z_mm(row["patient_id"], row["series_id"])
        pixel_mm, single_mm = row["pixel_mm"], row["spacing_z_mm"]
        measures = self._masks.clean(pixel_mm, z_mm, single_mm)
        ids = {"patient_id": row["patient_id"], "series_id": row["series_id"]}
        tables = {
            ORGAN_TABLE: measures.organs(pixel_mm, z_mm, single_mm),
            AREA_TABLE: measures.areas(pixel_mm, z_mm),
        }
        for name, table in tables.items():
            write_table(pd.DataFrame(ids, index=table.index).join(table), self._folder / name)
