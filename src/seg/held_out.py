"""Scores of a pair on the held-out patients, at the end of a run and during it."""

import tempfile
from pathlib import Path

import pandas as pd

from src.core.errors import UserError
from src.core.files import atomic_path, write_table
from src.core.log import format_table, say, warn
from src.core.runtime import Runtime
from src.data.png import write_png
from src.data.preview import mask_sheet
from src.seg.evaluate import score_series
from src.seg.mask_writer import segment_series
from src.seg.model import SegmenterPair, SegmenterSpec
from src.seg.options import SegOptions
from src.seg.split import SegData
from src.seg.volume_scores import summarise


def score_held_out(
    pair: SegmenterPair, spec: SegmenterSpec, data: SegData, runtime: Runtime, options: SegOptions
) -> None:
    """Segment the held-out series, score those with masks, and draw them, all in the run's folder.

    Masks go to `left_out/<set>/<patient_id>/<series_id>`, scores to scores.csv, pictures to sheets.
    """
    output = options.output
    folder = output / "left_out"
    rows = _score(pair, spec, data, runtime, options, folder)
    if rows.empty:
        return
    write_table(rows.drop(columns="set"), output / "scores.csv")
    say(f"patients left out:\n{format_table(summarise(rows))}")
    for series in rows[["set", "patient_id", "series_id"]].drop_duplicates().itertuples():
        dataset = data.sets[series.set]
        masks = folder / str(series.set) / series.patient_id / series.series_id
        picture = mask_sheet(dataset, series.patient_id, series.series_id, masks)
        with atomic_path(output / "sheets" / series.patient_id / f"{series.series_id}.png") as path:
            write_png(path, picture)


def score_during_training(
    pair: SegmenterPair, spec: SegmenterSpec, data: SegData, runtime: Runtime, options: SegOptions
) -> dict[str, float]:
    """Mean `dice` and `hd95_mm` of the held-out series with masks; empty if there are none."""
    with tempfile.TemporaryDirectory(prefix="left-out-") as folder:
        rows = _score(pair, spec, data, runtime, options, Path(folder))
    if rows.empty:
        return {}
    mean = summarise(rows).iloc[-1]
    say(f"  left out: dice {mean['dice']:.4f}, hd95 {mean['hd95_mm']:.1f} mm")
    return {"dice": mean["dice"], "hd95_mm": mean["hd95_mm"]}


def _score(
    pair: SegmenterPair,
    spec: SegmenterSpec,
    data: SegData,
    runtime: Runtime,
    options: SegOptions,
    folder: Path,
) -> pd.DataFrame:
    """Return the rows of `score_series`, with the set; no rows if no series has masks.

    A series that cannot be read is reported and not scored, because it must not end the run.
    """
    pair.eval()
    left_out, tables = data.part("left out"), []
    series = left_out[left_out["has_masks"]]
    for number in sorted(series["set"].unique()):
        dataset = data.sets[number]
        chosen = dataset.series.merge(series[series["set"] == number][["patient_id", "series_id"]])
        target = folder / str(number)
        outcomes = segment_series(pair, spec, runtime, dataset, chosen, target, workers=options.workers)
        for (_, row), outcome in zip(chosen.iterrows(), outcomes, strict=True):
            try:
                if outcome.reason:
                    raise UserError(outcome.reason)
                scores = score_series(dataset, row, target, options.organs)
            except UserError as error:
                warn(f"{outcome.patient_id}/{outcome.series_id} is not scored: {error}")
            else:
                tables.append(scores.assign(set=number))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
