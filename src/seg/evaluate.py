"""Score predicted organ masks against the true ones of a prepared data set.

    python -m src.seg.evaluate --data data/prepared --predicted runs/seg/few/masks --json few.json
    python -m src.seg.evaluate --data data/prepared --organs liver spleen --series held_out.csv --output s.csv

Series are scored that have true masks and a prediction. `dice` and `jaccard` are shares of 1, `hd95_mm` and
`asd_mm` distances between the surfaces; `series` counts those in which the organ is present, predicted or
both. An organ that was `missed` or `invented` scores 0 and the diagonal of the volume. The last row holds the
means over the organs, and the sums of the counts.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from src.core.config import parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import require_writable, write_json, write_table
from src.core.log import format_table, progress, say, warn
from src.ct.organ_labels import ORGANS
from src.data.labels import read_table
from src.data.prepared import PreparedDataset, mask_folder, read_slices
from src.seg.volume_scores import COUNTS, SCORES, score_volumes, summarise

IDS = ["patient_id", "series_id"]


@dataclass(frozen=True)
class EvaluateOptions:
    data: Path
    """prepared data set with true masks"""
    predicted: Path | None = None
    """folder of predictions, <patient_id>/<series_id>/0000.png ...; predicted_masks in --data by default"""
    organs: tuple[str, ...] = tuple(ORGANS)
    """organs to score"""
    series: Path | None = None
    """table with patient_id and series_id: score these alone"""
    output: Path | None = None
    """CSV for the scores, a row a series and organ"""
    json: Path | None = None
    """file for the means"""

    def __post_init__(self) -> None:
        unknown = [organ for organ in self.organs if organ not in ORGANS]
        if unknown:
            raise ValueError(f"option --organs: unknown organ {unknown[0]!r}; there are {', '.join(ORGANS)}")
        if not self.organs or len(set(self.organs)) < len(self.organs):
            raise ValueError(f"option --organs needs one or more organs, each once, got {self.organs}")


def main(argv: list[str] | None = None) -> None:
    """Read the options, score, print the table."""
    options = parse_options(EvaluateOptions, argv, prog="python -m src.seg.evaluate", description=__doc__)
    for path in filter(None, (options.output, options.json)):
        require_writable(path)
    dataset = PreparedDataset.open(options.data)
    predicted = options.predicted or options.data / "predicted_masks"
    series = choose_series(dataset, predicted, options.series)
    rows = evaluate_predictions(dataset, predicted, series, options.organs)
    summary = summarise(rows)
    say(f"{predicted}: {len(series)} series scored\n\n{format_table(summary)}")
    if options.output:
        write_table(rows, options.output)
    if options.json:
        write_json(summary_figures(len(series), summary), options.json)


def choose_series(dataset: PreparedDataset, predicted: Path, table: Path | None = None) -> pd.DataFrame:
    """The usable series with true masks and a prediction: rows of `dataset.series`.

    Warns of series of the table that have no true masks, and of series with true masks but no prediction.

    Args:
        predicted: folder of predictions.
        table: CSV with patient_id and series_id of the only series to choose from.

    Raises:
        UserError: no series has true masks, or none of those has a prediction, or a bad table.
    """
    series = dataset.series
    true = _keep(series, [dataset.has_masks(*ids) for ids in _ids(series)])
    where = str(dataset.folder)
    if table is not None:
        wanted = read_table(table, tuple(IDS))[IDS].drop_duplicates()
        true = true.merge(wanted, on=IDS)
        if 0 < len(true) < len(wanted):
            warn(
                f"{len(wanted) - len(true)} of {len(wanted)} series in {table} have no true masks in {where}"
            )
        where = f"{table} and {where}"
    if true.empty:
        raise UserError(f"no series of {where} has true masks: there is nothing to compare with")
    chosen = _keep(true, [predicted.joinpath(*ids).is_dir() for ids in _ids(true)])
    missing = len(true) - len(chosen)
    if chosen.empty:
        raise UserError(
            f"{predicted} has no prediction for the {missing} series with true masks: see --predicted"
        )
    if missing:
        warn(f"{missing} of {len(true)} series with true masks have no prediction in {predicted}")
    return chosen


def evaluate_predictions(
    dataset: PreparedDataset, predicted: Path, series: pd.DataFrame, organs: Iterable[str] = ORGANS
) -> pd.DataFrame:
    """Score the predictions of some series.

    Args:
        predicted: folder of label maps, <patient_id>/<series_id>/0000.png ..., on the grid of the data set.
        series: patient_id and series_id (text) of usable series with true masks and a prediction.
        organs: names of `ORGANS`.

    Returns:
        The rows of `score_volumes` for every series, with patient_id and series_id first.

    Raises:
        UserError: a series is not usable, has no true masks or no prediction, or its prediction has another
            number of slices, another size or unknown labels; or the spacing of its voxels is not known.
        ValueError: no series, or an unknown organ.
    """
    usable = dataset.series.set_index(IDS, drop=False)
    organs = list(organs)
    scores = []
    for ids in progress(_ids(series), total=len(series), desc="score"):
        if ids not in usable.index:
            raise UserError(f"{dataset.folder} has no usable series {'/'.join(ids)}")
        scores.append(score_series(dataset, usable.loc[ids], predicted, organs))
    return pd.concat(scores, ignore_index=True)


def score_series(
    dataset: PreparedDataset, series: pd.Series, predicted: Path, organs: Iterable[str] = ORGANS
) -> pd.DataFrame:
    """Score the prediction of one series, a row of `dataset.series`. See `evaluate_predictions`."""
    ids, slices = (series["patient_id"], series["series_id"]), int(series["slices"])
    truth = _read_label_maps(mask_folder(dataset.folder, *ids), slices, dataset.size)
    maps = _read_label_maps(predicted.joinpath(*ids), slices, dataset.size)
    rows = score_volumes(truth, maps, series_spacing_mm(dataset, *ids), list(organs))
    rows.insert(0, "patient_id", ids[0])
    rows.insert(1, "series_id", ids[1])
    return rows


def series_spacing_mm(
    dataset: PreparedDataset, patient_id: str, series_id: str
) -> tuple[float, float, float]:
    """Of the prepared voxels of a usable series along z, y and x.

    Along z it is the median distance of neighbouring slices: that in series.csv is the source's, of which
    preparation may have left slices out.

    Raises:
        UserError: it is not known.
    """
    row = dataset.series.set_index(IDS).loc[(patient_id, series_id)]
    z_mm = dataset.z_mm(patient_id, series_id)
    along, plane = float(row["spacing_z_mm"]), float(row["pixel_mm"])
    if len(z_mm) > 1:
        along = float(np.median(np.abs(np.diff(z_mm))))
    elif math.isnan(along):
        along = (
            plane  # the source has one slice too: no distance runs along z, only the diagonal needs a number
        )
    if not (0 < along < math.inf and 0 < plane < math.inf):
        raise UserError(
            f"series {patient_id}/{series_id} has voxels of {along:g} x {plane:g} mm: prepare it again"
        )
    return along, plane, plane


def summary_figures(n_series: int, summary: pd.DataFrame) -> dict:
    """What `--json` holds, of a table of `summarise`; a mean that is nan is None."""
    rows = {
        row["organ"]: {name: None if pd.isna(row[name]) else float(row[name]) for name in SCORES}
        | {name: int(row[name]) for name in COUNTS}
        for row in summary.to_dict("records")
    }
    mean = rows.pop("mean")
    return {"series": n_series, "organs": rows, "mean": mean}


def _keep(series: pd.DataFrame, which: list[bool]) -> pd.DataFrame:
    return series[np.array(which, dtype=bool)].reset_index(drop=True)


def _ids(series: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(series["patient_id"], series["series_id"], strict=True))


def _read_label_maps(folder: Path, slices: int, size: int) -> np.ndarray:
    """All label maps of a series, uint8 (Z, H, W)."""
    found = len(list(folder.glob("*.png")))
    if found != slices:
        raise UserError(f"{folder} holds {found} slices, its series has {slices}: make these masks again")
    try:
        maps = read_slices(folder, range(slices), size, 1)[..., 0]
    except UserError as error:
        # its advice is for images: masks may come from elsewhere
        problem = str(error).rpartition(";")[0]
        raise UserError(f"{problem}: masks are {slices} PNG of {size} x {size} px, 0000.png on") from None
    if maps.max() > max(ORGANS.values()):
        raise UserError(f"{folder} holds the label {maps.max()}; labels go up to {max(ORGANS.values())}")
    return maps


if __name__ == "__main__":
    with exit_on_user_error():
        main()
