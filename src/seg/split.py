"""Labelled, unlabelled and held-out series of a segmentation run, split by patient."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.core.runtime import sample_rng
from src.data.doubtful import is_doubtful, is_trained_on
from src.data.labels import read_table
from src.data.prepared import PreparedDataset
from src.nn.encoder_input import choose_input, find_input
from src.seg.options import SegOptions

PARTS = ("labelled", "unlabelled", "left out")


@dataclass(frozen=True)
class SegData:
    """The open prepared sets of a run, and the part of every series that it uses."""

    sets: tuple[PreparedDataset, ...]
    series: pd.DataFrame
    """One row per series: set (its number), patient_id, series_id, slices, has_masks, part (one of PARTS)."""
    window_names: tuple[str, ...]
    """The windows of `--windows`, or its default."""
    windows: tuple[tuple[int, ...], ...]
    """Channels of these windows in the stored images, for each set."""
    doubtful: int
    """number of doubtful series in the sets, in a part or left out of all"""

    @property
    def size(self) -> int:
        """Side of the slices in pixels."""
        return self.sets[0].size

    def part(self, name: str) -> pd.DataFrame:
        """Return the series of a part, in order."""
        return self.series[self.series["part"] == name].reset_index(drop=True)


def open_data(options: SegOptions) -> SegData:
    """Open `--data` and assign every series to a part.

    All series of a held-out patient are held out. A series without masks is unlabelled, also if another
    series of its patient is labelled. A doubtful series is in no part unless `--doubtful keep`.

    Raises:
        UserError: an unusable set, sets with different sizes, a missing window, an unknown patient in
            `--leave-out` or series in `--labelled`, or no series to train on.
    """
    sets = tuple(PreparedDataset.open(folder) for folder in options.data)
    sizes = {dataset.size for dataset in sets}
    if len(sizes) > 1:
        found = " and ".join(map(str, sorted(sizes)))
        raise UserError(f"the sets of --data have images of {found} px: prepare them with one --size")
    names = _choose_windows(options, sets)
    windows = tuple(dataset.channels(names) for dataset in sets)
    series = pd.concat(
        [_list_series(number, dataset, options) for number, dataset in enumerate(sets)], ignore_index=True
    )
    is_labelled = series["has_masks"] & series["is_used"] & _chosen(series, options.labelled)
    left_out = _choose_left_out(series, is_labelled, options)
    is_out = series["patient_id"].isin(left_out)
    part = np.where(is_out, "left out", np.where(is_labelled, "labelled", "unlabelled"))
    used = series.assign(part=part)[series["is_used"]].drop(columns="is_used").reset_index(drop=True)
    doubtful = sum(int(is_doubtful(dataset.series).sum()) for dataset in sets)
    data = SegData(sets, used, names, windows, doubtful)
    more = ", or give --doubtful keep" if len(used) < len(series) else ""
    if data.part("labelled").empty:
        raise UserError(
            f"no labelled series to learn from: prepare segmentations, or leave out fewer patients{more}"
        )
    if options.uses_unlabelled and data.part("unlabelled").empty:
        raise UserError(
            f"no unlabelled series for --pseudo and --contrast: give more --data, or set both to 0{more}"
        )
    return data


def _choose_windows(options: SegOptions, sets: Sequence[PreparedDataset]) -> tuple[str, ...]:
    """Return `--windows`; default: those that `--encoder` learnt from, else all that every set has."""
    shared = [name for name in sets[0].windows if all(name in other.windows for other in sets)]
    names = choose_input(find_input(options.sources[0]), shared, options.windows).windows
    if not names:
        raise UserError("the sets of --data have no window in common: prepare them with the same --windows")
    return names


def _list_series(number: int, dataset: PreparedDataset, options: SegOptions) -> pd.DataFrame:
    """Return the usable series of a set; `is_used` is False for those that `--doubtful` leaves out."""
    if dataset.series.empty:
        raise UserError(f"{dataset.folder} has no usable series: see {dataset.folder / 'series.csv'}")
    table = dataset.series[["patient_id", "series_id", "slices"]]
    pairs = zip(table["patient_id"], table["series_id"], strict=True)
    is_used = is_trained_on(dataset.series, options.doubtful, dataset.folder)
    return table.assign(set=number, has_masks=[dataset.has_masks(*pair) for pair in pairs], is_used=is_used)


def _chosen(series: pd.DataFrame, path: str | None) -> pd.Series:
    """Return a bool for each series: whether the table lists it; all True without a table."""
    if path is None:
        return pd.Series(True, index=series.index)
    table = read_series_list(Path(path))
    named = pd.MultiIndex.from_frame(table)
    known = pd.MultiIndex.from_frame(series.loc[series["has_masks"], ["patient_id", "series_id"]])
    missing = named.difference(known)
    if len(missing):
        patient_id, series_id = missing[0]
        raise UserError(
            f"{path}: series {series_id} of patient {patient_id} has no masks in --data "
            f"({len(missing)} such rows)"
        )
    pairs = pd.MultiIndex.from_frame(series[["patient_id", "series_id"]])
    return pd.Series(pairs.isin(named), index=series.index)


def read_series_list(path: Path) -> pd.DataFrame:
    """Read `patient_id` and `series_id` (text) from a table of series."""
    return read_table(path, ("patient_id", "series_id"))[["patient_id", "series_id"]]


def _choose_left_out(series: pd.DataFrame, is_labelled: pd.Series, options: SegOptions) -> set[str]:
    unknown = [patient for patient in options.leave_out if patient not in set(series["patient_id"])]
    if unknown:
        raise UserError(f"--leave-out: no patient {unknown[0]} in --data")
    candidates = sorted(set(series.loc[is_labelled, "patient_id"]) - set(options.leave_out))
    count = round(options.validation * len(candidates))
    if options.validation and candidates:
        count = min(max(count, 1), len(candidates) - 1)
    drawn = sample_rng(options.seed, 0, 0).choice(candidates, size=count, replace=False) if count else ()
    return {*options.leave_out, *map(str, drawn)}
