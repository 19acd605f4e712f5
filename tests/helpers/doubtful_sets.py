"""Prepared data sets with doubtful series, for the tests of training and prediction."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from src.ct.series import Remark, SeriesSource
from src.prepare.grey_stack import GreyStack, load_stack

REASON = "no value is below 0 HU"


def mark_doubtful(data: Path, series_ids: list[str]) -> Path:
    """Make series of a prepared data set doubtful, as prepare_data.py records it."""
    table = pd.read_csv(data / "series.csv", dtype={"patient_id": str, "series_id": str, "reason": str})
    chosen = table["series_id"].isin(series_ids)
    assert chosen.sum() == len(series_ids)
    table.loc[chosen, ["status", "reason"]] = "doubtful", REASON
    table.to_csv(data / "series.csv", index=False)
    return data


def copy_doubtful(data: Path, folder: Path, series_ids: list[str]) -> Path:
    """Copy a prepared data set, in which these series are doubtful."""
    return mark_doubtful(shutil.copytree(data, folder), series_ids)


def series_of(data: Path) -> dict[str, list[str]]:
    """Series ids of the patients of a prepared data set."""
    table = pd.read_csv(data / "series.csv", dtype=str)
    return {patient: rows.tolist() for patient, rows in table.groupby("patient_id")["series_id"]}


@dataclass(frozen=True)
class LoadWithRemarks:
    """`load_stack`, which finds more remarks in some series. A child process can import it."""

    remarks: dict[str, tuple[Remark, ...]]
    """by series id"""

    def __call__(self, source: SeriesSource, *rest: Any, **more: Any) -> GreyStack:
        stack = load_stack(source, *rest, **more)
        return replace(stack, remarks=(*stack.remarks, *self.remarks.get(source.series_id, ())))
