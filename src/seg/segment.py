"""The run of segment.py: masks for every series of a prepared data set, and tables over all series."""

import hashlib
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from src.core.errors import UserError
from src.core.files import atomic_path, discard, read_exact, write_table
from src.core.log import is_main_process, say, warn
from src.core.run_folder import claim_folder, only_writer
from src.core.runtime import Runtime
from src.data.png import write_png
from src.data.prepared import PreparedDataset
from src.data.preview import mask_sheet
from src.seg.mask_writer import AREA_TABLE, ORGAN_TABLE, TABLE_COLUMNS, segment_series
from src.seg.model import SegmenterPair, SegmenterSpec, find_segmenter, load_segmenter
from src.seg.options import SegmentOptions
from src.seg.split import read_series_list

RECORD, FAILED = "segmentation.json", "failed.csv"
IDS = ["patient_id", "series_id"]

_LEFTOVERS = (
    *(".*.partial", "*/.*.partial", "preview/*/.*-*.png"),
    *(f".{Path(name).stem}-*{Path(name).suffix}" for name in (RECORD, FAILED, *TABLE_COLUMNS)),
)
"""Temporary files and folders of a killed run."""


def segment_dataset(options: SegmentOptions) -> None:
    """Segment the series that have no masks yet, then write the tables over all series with masks.

    Under torchrun every process segments some of the series.

    Raises:
        UserError: the model or data set is unusable, they do not match, or the output was made by another
            model.
    """
    path = find_segmenter(options.model)
    dataset = PreparedDataset.open(options.data)
    output = options.output or options.data / "predicted_masks"
    pair, spec = load_segmenter(path)
    dataset.channels(spec.windows)  # raises for a window that is not prepared
    if spec.size > dataset.size:
        raise UserError(
            f"{dataset.folder} has images of {dataset.size} px, the model was trained on {spec.size} px: "
            "prepare them with that --size, or a larger one"
        )
    series = _choose_series(dataset, options.series)
    with Runtime.create(options.precision) as runtime, runtime.lost_peer_in_one_line():
        if not is_main_process():
            runtime.wait_for_all()
            _segment(pair, spec, runtime, dataset, series, output, options)
            return
        with only_writer(output):
            _claim(output, path, dataset, runtime, options)
            runtime.wait_for_all()  # until --overwrite has deleted earlier results
            failed = _segment(pair, spec, runtime, dataset, series, output, options)
            _write_tables(output, dataset, _with_earlier(failed, series, output))


def _choose_series(dataset: PreparedDataset, table: Path | None) -> pd.DataFrame:
    chosen = dataset.series
    if table is not None:
        listed = read_series_list(table).drop_duplicates()
        chosen = chosen.merge(listed, on=IDS)
        if len(chosen) < len(listed):
            missing = len(listed) - len(chosen)
            warn(f"{missing} of {len(listed)} series in {table} are not in {dataset.folder}")
    if chosen.empty:
        raise UserError(f"{dataset.folder} has no usable series to segment")
    return chosen


def _claim(
    output: Path, model: Path, dataset: PreparedDataset, runtime: Runtime, options: SegmentOptions
) -> None:
    """Check that masks in the output were made in the same way, and delete leftovers of killed runs."""
    record = {
        "model": str(model),
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "data": hashlib.sha256((dataset.folder / "dataset.json").read_bytes()).hexdigest(),
        # these may change the last digit of a probability and thus the label of a pixel
        "device": runtime.device.type,
        "precision": runtime.precision,
        "batch": options.batch,
    }
    if options.spacing_mm:
        record["spacing_mm"] = options.spacing_mm
    claim_folder(
        output,
        RECORD,
        record,
        kind="masks of segment.py",
        leftovers=_LEFTOVERS,
        overwrite=options.overwrite,
        free=("model",),
        named={
            "sha256": "another model",
            "data": "another preparation of the data",
            "device": "another device",
        },
        advice="choose another --output, or --overwrite",
    )


def _segment(
    pair: SegmenterPair,
    spec: SegmenterSpec,
    runtime: Runtime,
    dataset: PreparedDataset,
    series: pd.DataFrame,
    output: Path,
    options: SegmentOptions,
) -> pd.DataFrame:
    """Segment this process's part of the series.

    Returns:
        `patient_id, series_id, reason` of the series that failed in any process.
    """
    share = series.iloc[runtime.rank :: runtime.world]
    is_left = np.array([not _is_done(dataset, ids, output) for ids in _ids(share)], dtype=bool)
    left = share[is_left].reset_index(drop=True)
    for ids in _ids(left):  # outdated masks and pictures of series that were prepared again
        discard(output.joinpath(*ids))
        discard(_picture(output, ids))
    done = runtime.sum(torch.tensor(len(share) - len(left), device=runtime.device)).item()
    say(f"{len(series)} series, {done} of them segmented before; {runtime.device}")
    pair = pair.to(runtime.device)
    given = {"chunk": options.batch, "spacing_mm": options.spacing_mm, "workers": options.workers}
    results = segment_series(pair, spec, runtime, dataset, left, output, **given)
    failed = []
    for result in results:
        if result.reason:
            warn(f"{result.patient_id}/{result.series_id}: {result.reason}")
            failed.append((result.patient_id, result.series_id, result.reason))
    if options.preview:
        _draw_missing(dataset, _ids(share), output)
    return pd.DataFrame(runtime.gather_rows(failed), columns=[*IDS, "reason"])  # waits for every process


def _is_done(dataset: PreparedDataset, ids: tuple[str, str], output: Path) -> bool:
    """Return whether a series has masks of its current slices: it may have been prepared again."""
    areas = output.joinpath(*ids) / AREA_TABLE
    if not areas.is_file():
        return False
    try:
        masked_mm = read_exact(areas, usecols=["z_mm"], dtype=float)["z_mm"]
        z_mm = dataset.z_mm(*ids)
    except (UserError, ValueError):
        return False
    return len(masked_mm) == len(z_mm) and np.allclose(masked_mm, z_mm)


def _draw_missing(dataset: PreparedDataset, series: list[tuple[str, str]], output: Path) -> None:
    """Draw every series that has masks but no picture, including those segmented before."""
    for ids in series:
        picture, masks = _picture(output, ids), output.joinpath(*ids)
        if not masks.is_dir() or picture.exists():
            continue
        try:
            sheet = mask_sheet(dataset, *ids, masks)
        except UserError as error:  # such as damaged true masks; the predicted ones are not affected
            warn(f"no picture of {'/'.join(ids)}: {error}")
            continue
        with atomic_path(picture) as path:
            write_png(path, sheet)


def _with_earlier(failed: pd.DataFrame, series: pd.DataFrame, output: Path) -> pd.DataFrame:
    """Join the failures of this run and those of earlier runs for series that this run did not include."""
    if not (output / FAILED).is_file():
        return failed
    earlier = pd.read_csv(output / FAILED, dtype=str)
    is_included = pd.MultiIndex.from_frame(earlier[IDS]).isin(pd.MultiIndex.from_frame(series[IDS]))
    return pd.concat([earlier[~is_included], failed], ignore_index=True)


def _write_tables(output: Path, dataset: PreparedDataset, failed: pd.DataFrame) -> None:
    """Write the tables of all series that have masks, in the order of the data set."""
    done = [ids for ids in _ids(dataset.series) if output.joinpath(*ids).is_dir()]
    for name, columns in TABLE_COLUMNS.items():
        with atomic_path(output / name) as temporary, temporary.open("w", encoding="utf-8") as table:
            table.write(",".join(columns) + "\n")
            for ids in done:  # copied line by line: the areas of thousands of series are millions of rows
                with (output.joinpath(*ids) / name).open(encoding="utf-8") as lines:
                    table.writelines(islice(lines, 1, None))
    write_table(failed, output / FAILED)
    others = {path.relative_to(output).parts[:2] for path in output.glob("*/*/" + AREA_TABLE)} - set(done)
    if others:
        warn(f"{output} also holds masks of {len(others)} series that {dataset.folder} does not have")
    say(f"{len(done)} series have masks in {output}: {ORGAN_TABLE}, {AREA_TABLE}")
    if len(failed):
        warn(f"{len(failed)} series could not be segmented: see {output / FAILED}")


def _ids(series: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(series["patient_id"], series["series_id"], strict=True))


def _picture(output: Path, ids: tuple[str, str]) -> Path:
    patient_id, series_id = ids
    return output / "preview" / patient_id / f"{series_id}.png"
