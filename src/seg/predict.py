"""Masks for the series of a prepared set by a trained pair: predicted, cleaned, measured, written.

The model works on one chunk of slices while the next ones are decoded in worker processes and the masks of
the last ones are cleaned and written in a thread. No more than a few chunks are held, however long a series.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.core.files import whole_folder, write_table
from src.core.log import progress
from src.core.runtime import Runtime
from src.data.organ_tables import AREA_COLUMNS, ORGAN_TYPES, OrganMeasures, voxel_volumes_ml
from src.data.png import read_png, write_png
from src.data.prepared import PreparedDataset, slice_name
from src.seg.components import ComponentScan
from src.seg.model import SegmenterPair, SegmenterSpec, predict_masks
from src.seg.stream import Chunk, SliceStream, with_neighbours

ORGAN_TABLE, AREA_TABLE = "organs.csv", "areas.csv"
"""In the folder of every series that was segmented."""

_IDS = ("patient_id", "series_id")
TABLE_COLUMNS = MappingProxyType(
    {
        ORGAN_TABLE: (*_IDS, *ORGAN_TYPES),
        AREA_TABLE: (*_IDS, "index", "z_mm", *AREA_COLUMNS.values()),
    }
)
"""Of each table."""

_MOST_WAITING = 2
"""Chunks whose masks wait to be written: the writer never falls further behind."""


@dataclass(frozen=True)
class Outcome:
    """What became of a series."""

    patient_id: str
    series_id: str
    reason: str = ""
    """why it has no masks; empty if it has"""


def segment_series(
    pair: SegmenterPair,
    spec: SegmenterSpec,
    runtime: Runtime,
    dataset: PreparedDataset,
    series: pd.DataFrame,
    output: Path,
    *,
    chunk: int = 16,
    workers: int = 1,
) -> Iterator[Outcome]:
    """Write the masks and tables of every series to `output/<patient_id>/<series_id>`, one rename a series.

    What stands there is replaced. A series that cannot be read leaves nothing and is told of.

    Args:
        pair: on the device, in evaluation mode.
        series: usable rows of `dataset.series`.
        chunk: slices that pass the networks together.
        workers: processes that read ahead.

    Yields:
        An outcome a series, in order, once it is written.
    """
    windows = dataset.channels(spec.windows)
    stream = SliceStream(dataset, series, windows, spec.slices, chunk)
    waiting: deque[Future[Outcome | None]] = deque()
    # left in reverse order: the thread has ended when the folder of an unfinished series is deleted
    with ExitStack() as stack:
        writer = stack.enter_context(MaskWriter(dataset, series, output))
        background = ThreadPoolExecutor(max_workers=1)
        stack.callback(background.shutdown, cancel_futures=True)
        for part in progress(stream.read(workers), len(stream), "slices"):
            if part.error:
                waiting.append(background.submit(writer.give_up, part))
            else:
                images = with_neighbours(part, runtime.device)  # (N, H, W, T * C)
                with runtime.autocast():
                    masks = predict_masks(pair, images)
                waiting.append(background.submit(writer.add, part, masks.cpu().numpy()))
            while len(waiting) > _MOST_WAITING:
                if outcome := waiting.popleft().result():
                    yield outcome
        for future in waiting:
            if outcome := future.result():
                yield outcome


class MaskWriter:
    """Takes the masks of one series after another, in order, chunk by chunk."""

    def __init__(self, dataset: PreparedDataset, series: pd.DataFrame, output: Path) -> None:
        self.dataset, self.series, self.output = dataset, series, output
        self.scan = ComponentScan()
        self._failed = -1  # row of the last series that was given up
        self._open: AbstractContextManager[Path] | None = None
        self._folder = Path()  # of the open series

    def __enter__(self) -> "MaskWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def add(self, part: Chunk, masks: np.ndarray) -> Outcome | None:
        """Write the raw masks (N, H, W) of a chunk; with the last one of a series, clean and measure it."""
        if part.row == self._failed:
            return None
        try:
            return self._add(part, masks)
        except UserError as error:
            return self._fail(part, str(error))
        except Exception:
            self._fail(part, "")  # the chunks that wait behind this one would write on
            raise

    def give_up(self, part: Chunk) -> Outcome | None:
        """Drop the series of a chunk that could not be read."""
        return self._fail(part, part.error) if part.row != self._failed else None

    def _add(self, part: Chunk, masks: np.ndarray) -> Outcome | None:
        row = self.series.iloc[part.row]
        if self._open is None:
            self._begin(row)
        for number, mask in enumerate(masks):
            self.scan.add(mask)
            write_png(self._folder / slice_name(part.first + number), mask)
        if not part.is_last:
            return None
        self._finish(row)
        self._open.__exit__(None, None, None)
        self._open = None
        return Outcome(row["patient_id"], row["series_id"])

    def _begin(self, row: pd.Series) -> None:
        self.scan = ComponentScan()
        partial = whole_folder(self.output / row["patient_id"] / row["series_id"])
        self._folder = partial.__enter__()
        self._open = partial

    def _finish(self, row: pd.Series) -> None:
        """The second pass over the masks of a series: clean them up, measure what is left."""
        z_mm = self.dataset.z_mm(row["patient_id"], row["series_id"])
        pixel_mm, single_mm = row["pixel_mm"], row["spacing_z_mm"]
        voxel_ml = voxel_volumes_ml(pixel_mm, z_mm, single_mm)
        if not (voxel_ml > 0).all():  # nan is not
            raise UserError("its voxels have no known size: a single slice, or no pixel_mm in series.csv")
        clean_up = self.scan.clean_up(voxel_ml)
        measures = OrganMeasures()
        for index in range(len(z_mm)):
            path = self._folder / slice_name(index)
            mask = read_png(path)
            cleaned = clean_up.apply(mask, index)
            if not np.array_equal(cleaned, mask):
                write_png(path, cleaned)
            measures.add(cleaned)
        ids = {"patient_id": row["patient_id"], "series_id": row["series_id"]}
        tables = {
            ORGAN_TABLE: measures.organs(pixel_mm, z_mm, single_mm),
            AREA_TABLE: measures.areas(pixel_mm, z_mm),
        }
        for name, table in tables.items():
            write_table(pd.DataFrame(ids, index=table.index).join(table), self._folder / name)

    def _fail(self, part: Chunk, reason: str) -> Outcome:
        self._failed = part.row
        self._drop()
        row = self.series.iloc[part.row]
        return Outcome(row["patient_id"], row["series_id"], reason)

    def _drop(self) -> None:
        """Leave nothing of a series that did not come to its end."""
        if self._open is not None:
            self._open.__exit__(_Unfinished, _Unfinished(), None)
            self._open = None


class _Unfinished(Exception):
    """Tells a series' folder that it is to vanish."""
