"""Masks for every series of a prepared data set, with the tables that sum them up."""

import hashlib
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from src.core.errors import UserError
from src.core.files import atomic_path, discard, read_exact, require_writable, write_json, write_table
from src.core.log import is_main_process, say, warn
from src.core.run_folder import only_writer
from src.core.runtime import Runtime
from src.data.png import write_png
from src.data.prepared import PreparedDataset
from src.data.preview import mask_sheet
from src.seg.mask_writer import AREA_TABLE, ORGAN_TABLE, TABLE_COLUMNS, segment_series
from src.seg.model import SegmenterSpec, find_segmenter, load_segmenter
from src.seg.options import SegmentOptions
from src.seg.split import read_series_list

RECORD, FAILED = "segmentation.json", "failed.csv"

_LEFTOVERS = (
    *(".*.partial", "*/.*.partial", "preview/*/.*-*.png"),
    *(f".{Path(name).stem}-*{Path(name).suffix}" for name in (RECORD, FAILED, *TABLE_COLUMNS)),
)
"""What a killed run leaves in its output: folders and files that did not get their names."""


def segment_dataset(options: SegmentOptions) -> None:
    """Segment what has no masks yet, then write the tables over all that has.

    Under torchrun every process takes its share of the series.

    Raises:
        UserError: a model or data set that cannot be used or do not fit each other, or an output that
            another model made.
    """
    path = find_segmenter(options.model)
    dataset = PreparedDataset.open(options.data)
    output = options.output or options.data / "predicted_masks"
    pair, spec = load_segmenter(path)
    _require_fit(spec, dataset)
    series = _choose_series(dataset, options.series)
    with Runtime.create(options.precision) as runtime, runtime.lost_peer_in_one_line():
        if not is_main_process():
            runtime.wait_for_all()
            _segment(pair, spec, runtime, dataset, series, output, options)
            return
        require_writable(output / RECORD)
        with only_writer(output):
            _claim(output, path, dataset, runtime, options)
            runtime.wait_for_all()  # what --overwrite discards is no longer there to be found done
            failed = _segment(pair, spec, runtime, dataset, series, output, options)
            _write_tables(output, dataset, _with_earlier(failed, series, output))


def series_folder(output: Path, row: pd.Series) -> Path:
    """Where the masks of a series lie."""
    return output / row["patient_id"] / row["series_id"]


def _require_fit(spec: SegmenterSpec, dataset: PreparedDataset) -> None:
    dataset.channels(spec.windows)  # refuses one that is not prepared
    if spec.size != dataset.size:
        raise UserError(
            f"{dataset.folder} has images of {dataset.size} px, the model was trained on {spec.size} px: "
            "prepare them with that --size"
        )


def _choose_series(dataset: PreparedDataset, table: Path | None) -> pd.DataFrame:
    if table is None:
        chosen = dataset.series
    else:
        wanted = read_series_list(table).drop_duplicates()
        chosen = dataset.series.merge(wanted, on=["patient_id", "series_id"])
        if len(chosen) < len(wanted):
            warn(
                f"{len(wanted) - len(chosen)} of {len(wanted)} series in {table} are not in {dataset.folder}"
            )
    if chosen.empty:
        raise UserError(f"{dataset.folder} has no usable series to segment")
    return chosen


def _claim(
    output: Path, model: Path, dataset: PreparedDataset, runtime: Runtime, options: SegmentOptions
) -> None:
    """Make sure that what the output holds was made by the same model; remove what killed runs left.

    Raises:
        UserError: it was made by another model, of data prepared otherwise, or by something else.
    """
    record = {
        "model": str(model),
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "data": hashlib.sha256((dataset.folder / "dataset.json").read_bytes()).hexdigest(),
        "device": runtime.device.type,
        "precision": runtime.precision,
        "batch": options.batch,
    }
    path = output / RECORD
    unwanted = {item for pattern in _LEFTOVERS for item in output.glob(pattern)}
    if not path.exists() and set(output.iterdir()) - unwanted:
        raise UserError(f"{output} holds other files than masks of segment.py: choose another --output")
    if options.overwrite:
        unwanted = set(output.iterdir()) - {path}  # with the record, a run killed here can be repeated
    elif path.exists():
        _require_same(record, path)
    for item in unwanted:
        discard(item)
    write_json(record, path)


def _require_same(record: dict[str, Any], path: Path) -> None:
    """Make sure that the masks beside the record at `path` are such as this run would make."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path} is damaged: choose another --output, or --overwrite") from None
    # a device, a precision or a batch may change the last digit of a probability, and so a pixel
    whats = {
        "sha256": "by another model",
        "data": "of data that were prepared otherwise",
        "device": f"on another device ({saved.get('device')})",
        "precision": f"with another --precision ({saved.get('precision')})",
        "batch": f"with another --batch ({saved.get('batch')})",
    }
    changed = [what for name, what in whats.items() if saved.get(name) != record[name]]
    if changed:
        raise UserError(
            f"{path.parent} holds masks made {changed[0]}: choose another --output, or --overwrite"
        )


def _segment(
    pair: torch.nn.Module,
    spec: SegmenterSpec,
    runtime: Runtime,
    dataset: PreparedDataset,
    series: pd.DataFrame,
    output: Path,
    options: SegmentOptions,
) -> pd.DataFrame:
    """Segment this process's share; `patient_id, series_id, reason` of what no process could."""
    share = series.iloc[runtime.rank :: runtime.world]
    is_left = [not _is_done(dataset, row, output) for _, row in share.iterrows()]
    left = share[is_left].reset_index(drop=True)
    for _, row in left.iterrows():  # masks of the slices that it had before
        discard(series_folder(output, row))
        discard(output / "preview" / row["patient_id"] / f"{row['series_id']}.png")
    done = runtime.sum(torch.tensor(len(share) - len(left), device=runtime.device)).item()
    say(f"{len(series)} series, {done} of them segmented before; {runtime.device}")
    pair = pair.to(runtime.device)
    outcomes = segment_series(
        pair, spec, runtime, dataset, left, output, chunk=options.batch, workers=options.workers
    )
    failed = []
    for outcome in outcomes:
        if outcome.reason:
            warn(f"{outcome.patient_id}/{outcome.series_id}: {outcome.reason}")
            failed.append((outcome.patient_id, outcome.series_id, outcome.reason))
    if options.preview:
        _draw_missing(dataset, share, output)
    # the tables wait here for every process
    return pd.DataFrame(runtime.gather_rows(failed), columns=["patient_id", "series_id", "reason"])


def _is_done(dataset: PreparedDataset, row: pd.Series, output: Path) -> bool:
    """Whether a series has masks, of the slices that it has now: it may have been prepared again."""
    areas = series_folder(output, row) / AREA_TABLE
    if not areas.is_file():
        return False
    try:
        shown_mm = read_exact(areas, usecols=["z_mm"], dtype=float)["z_mm"]
        z_mm = dataset.z_mm(row["patient_id"], row["series_id"])
    except (UserError, ValueError):
        return False
    return len(shown_mm) == len(z_mm) and np.allclose(shown_mm, z_mm)


def _draw_missing(dataset: PreparedDataset, series: pd.DataFrame, output: Path) -> None:
    """The pictures of series that have masks and none yet, those segmented before included."""
    for _, row in series.iterrows():
        picture = output / "preview" / row["patient_id"] / f"{row['series_id']}.png"
        masks = series_folder(output, row)
        if not masks.is_dir() or picture.exists():
            continue
        try:
            sheet = mask_sheet(dataset, row["patient_id"], row["series_id"], masks)
        except UserError as error:  # of the true masks, say: those predicted and their tables are as good
            warn(f"no picture of {row['patient_id']}/{row['series_id']}: {error}")
            continue
        with atomic_path(picture) as path:
            write_png(path, sheet)


def _with_earlier(failed: pd.DataFrame, series: pd.DataFrame, output: Path) -> pd.DataFrame:
    """The failures of this run, and those of earlier ones among series that it was not asked for."""
    if not (output / FAILED).is_file():
        return failed
    earlier = pd.read_csv(output / FAILED, dtype=str)
    ids = ["patient_id", "series_id"]
    asked = pd.MultiIndex.from_frame(earlier[ids]).isin(pd.MultiIndex.from_frame(series[ids]))
    return pd.concat([earlier[~asked], failed], ignore_index=True)


def _write_tables(output: Path, dataset: PreparedDataset, failed: pd.DataFrame) -> None:
    """The tables of all series that have masks, in the order of the data set."""
    done = [row for _, row in dataset.series.iterrows() if series_folder(output, row).is_dir()]
    for name, columns in TABLE_COLUMNS.items():
        with atomic_path(output / name) as temporary, temporary.open("w", encoding="utf-8") as table:
            table.write(",".join(columns) + "\n")
            for row in done:  # line by line as it is: the areas of thousands of series are millions of rows
                with (series_folder(output, row) / name).open(encoding="utf-8") as lines:
                    table.writelines(islice(lines, 1, None))
    write_table(failed, output / FAILED)
    others = {path.relative_to(output).parts for path in output.glob("*/*/" + AREA_TABLE)}
    others -= {(row["patient_id"], row["series_id"], AREA_TABLE) for row in done}
    if others:
        warn(f"{output} also holds masks of {len(others)} series that {dataset.folder} does not have")
    say(f"{len(done)} series have masks in {output}: {ORGAN_TABLE}, {AREA_TABLE}")
    if len(failed):
        warn(f"{len(failed)} series could not be segmented: see {output / FAILED}")
