"""Score predicted organ masks against the true ones of a prepared data set.

    python -m src.seg.evaluate --data data/prepared --predicted runs/seg/few/masks --json few.json
    python -m src.seg.evaluate --data data/prepared --organs liver spleen --series held_out.csv --output s.csv

Scores every series that has true masks and a prediction. `dice` and `jaccard` are fractions, `hd95_mm` and
`asd_mm` distances between the surfaces; `series` counts those with the organ in either mask. An organ that
is `missed` (not predicted) or `invented` (not in the truth) gets overlaps of 0 and the diagonal of the volume
as its distances. The last row contains the means over the organs, and the sums of the counts.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from src.core.config import parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import require_writable, write_json, write_table
from src.core.log import format_table, progress, say, warn
from src.core.targets import ORGANS
from src.data.doubtful import is_doubtful
from src.data.labels import read_table
from src.data.prepared import PreparedDataset, mask_folder, read_slices
from src.seg.options import Organ
from src.seg.volume_scores import COUNTS, SCORES, score_volumes, summarise

IDS = ["patient_id", "series_id"]


@dataclass(frozen=True)
class MaskScoreOptions:
    """Options of `python -m src.seg.evaluate`."""

    data: Path
    """Prepared data set with true masks."""

    predicted: Path | None = None
    """Folder of predictions, <patient_id>/<series_id>/0000.png ...; default: predicted_masks in --data."""

    organs: tuple[Organ, ...] = get_args(Organ)
    """Organs to score."""

    series: Path | None = None
    """Table with patient_id and series_id: score only these."""

    output: Path | None = None
    """CSV file for the scores, one row per series and organ."""

    json: Path | None = None
    """JSON file for the means."""

    def __post_init__(self) -> None:
        if not self.organs or len(set(self.organs)) < len(self.organs):
            raise ValueError(f"option --organs needs one or more organs, each once, got {self.organs}")


def main(argv: list[str] | None = None) -> None:
    """Read the options, score, print the table."""
    options = parse_options(MaskScoreOptions, argv, prog="python -m src.seg.evaluate", description=__doc__)
    for path in filter(None, (options.output, options.json)):
        require_writable(path)
    dataset = PreparedDataset.open(options.data)
    predicted = options.predicted or options.data / "predicted_masks"
    series = choose_series(dataset, predicted, options.series)
    scores = [
        score_series(dataset, row, predicted, options.organs)
        for _, row in progress(series.iterrows(), total=len(series), desc="score")
    ]
    rows = pd.concat(scores, ignore_index=True)
    summary = summarise(rows)
    doubtful = is_doubtful(series).sum()
    count = f"{len(series)} series scored" + (f", {doubtful} of them doubtful" if doubtful else "")
    say(f"{predicted}: {count}\n\n{format_table(summary)}")
    if options.output:
        write_table(rows, options.output)
    if options.json:
        write_json(summary_as_json(len(series), summary), options.json)


def choose_series(dataset: PreparedDataset, predicted: Path, table: Path | None = None) -> pd.DataFrame:
    """Return the usable series with true masks and a prediction: rows of `dataset.series`.

    Warns of series in the table without true masks, and of series with true masks but no prediction.

    Args:
        predicted: folder of predictions.
        table: CSV with patient_id and series_id, to select only these series.

    Raises:
        UserError: no series has true masks, none of those has a prediction, or the table is invalid.
    """
    true = _keep(dataset.series, dataset.has_masks)
    where = str(dataset.folder)
    if table is not None:
        listed = read_table(table, tuple(IDS))[IDS].drop_duplicates()
        true = true.merge(listed, on=IDS)
        if 0 < len(true) < len(listed):
            warn(
                f"{len(listed) - len(true)} of {len(listed)} series in {table} have no true masks in {where}"
            )
        where = f"{table} and {where}"
    if true.empty:
        raise UserError(f"no series of {where} has true masks: there is nothing to compare with")
    chosen = _keep(true, lambda *ids: predicted.joinpath(*ids).is_dir())
    missing = len(true) - len(chosen)
    if chosen.empty:
        raise UserError(
            f"{predicted} has no prediction for the {missing} series with true masks: see --predicted"
        )
    if missing:
        warn(f"{missing} of {len(true)} series with true masks have no prediction in {predicted}")
    return chosen


def score_series(
    dataset: PreparedDataset, series: pd.Series, predicted: Path, organs: Iterable[str] = ORGANS
) -> pd.DataFrame:
    """Score the prediction of one series.

    Args:
        series: a row of `dataset.series`, with true masks.
        predicted: folder of label maps, <patient_id>/<series_id>/0000.png ..., on the grid of the data set.
        organs: names of `ORGANS`.

    Returns:
        The rows of `score_volumes`, with patient_id and series_id first.

    Raises:
        UserError: masks have another number of slices, another size or unknown labels, or the voxel size is
            unknown.
    """
    ids, slices = (series["patient_id"], series["series_id"]), int(series["slices"])
    truth = _read_label_maps(mask_folder(dataset.folder, *ids), slices, dataset.size)
    maps = _read_label_maps(predicted.joinpath(*ids), slices, dataset.size)
    rows = score_volumes(truth, maps, spacing_mm(dataset, series), list(organs))
    rows.insert(0, "patient_id", ids[0])
    rows.insert(1, "series_id", ids[1])
    return rows


def spacing_mm(dataset: PreparedDataset, series: pd.Series) -> tuple[float, float, float]:
    """Return the spacing along z, y and x of the prepared voxels of a series, a row of `dataset.series`.

    Along z it is the median distance between prepared slices. The spacing in series.csv refers to the source,
    of which preparation may have kept only some slices.

    Raises:
        UserError: the spacing is unknown.
    """
    z_mm = dataset.z_mm(series["patient_id"], series["series_id"])
    along, plane = float(series["spacing_z_mm"]), float(series["pixel_mm"])
    if len(z_mm) > 1:
        along = float(np.median(np.abs(np.diff(z_mm))))
    elif math.isnan(along):
        along = plane  # a single slice has no spacing along z; any value works for the diagonal
    if not (0 < along < math.inf and 0 < plane < math.inf):
        raise UserError(
            f"series {series['patient_id']}/{series['series_id']} has voxels of {along:g} x {plane:g} mm: "
            "prepare it again"
        )
    return along, plane, plane


def summary_as_json(n_series: int, summary: pd.DataFrame) -> dict:
    """Return the content of `--json`, from a table of `summarise`; a mean that is NaN becomes None."""
    rows = {
        row["organ"]: {name: None if pd.isna(row[name]) else float(row[name]) for name in SCORES}
        | {name: int(row[name]) for name in COUNTS}
        for row in summary.to_dict("records")
    }
    mean = rows.pop("mean")
    return {"series": n_series, "organs": rows, "mean": mean}


def _keep(series: pd.DataFrame, is_kept: Callable[[str, str], bool]) -> pd.DataFrame:
    kept = [is_kept(*ids) for ids in zip(series["patient_id"], series["series_id"], strict=True)]
    return series[np.array(kept, dtype=bool)].reset_index(drop=True)


def _read_label_maps(folder: Path, slices: int, size: int) -> np.ndarray:
    """Read all label maps of a series, uint8 (Z, H, W)."""
    found = len(list(folder.glob("*.png")))
    if found != slices:
        raise UserError(f"{folder} holds {found} slices, its series has {slices}: make these masks again")
    try:
        maps = read_slices(folder, range(slices), size, 1)[..., 0]
    except UserError as error:
        # the advice of read_slices is for prepared images; these masks may come from other programs
        problem = str(error).rpartition(";")[0]
        raise UserError(f"{problem}: masks are {slices} PNG of {size} x {size} px, 0000.png on") from None
    if maps.max() > max(ORGANS.values()):
        raise UserError(f"{folder} holds the label {maps.max()}; labels go up to {max(ORGANS.values())}")
    return maps


if __name__ == "__main__":
    with exit_on_user_error():
        main()
