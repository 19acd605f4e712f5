"""Doubtful series of a prepared data set, whose pixels may be wrong: which ones networks are trained on.

Training excludes them unless `--doubtful keep`. Predictions include them (out of fold, segment.py, infer.py),
so that no patient is missing from a table.
"""

from pathlib import Path

import pandas as pd

from src.core.config import Doubtful
from src.core.errors import UserError
from src.core.log import say, warn

MAX_SHARE = 0.01
"""Share of doubtful series in a data set above which preparation warns."""


def is_doubtful(series: pd.DataFrame) -> pd.Series:
    """Return a bool for each series: whether its pixels may be wrong, by the `status` of series.csv."""
    return series["status"] == "doubtful"


def is_trained_on(series: pd.DataFrame, doubtful: Doubtful, folder: Path) -> pd.Series:
    """Return a bool for each usable series: whether to train on it.

    Args:
        series: usable series of a prepared data set, with their `status`.
        doubtful: option of the training.
        folder: folder of the data set, for the message.

    Raises:
        UserError: all series are doubtful, and excluded.
    """
    if doubtful == "keep":
        return pd.Series(True, index=series.index)
    chosen = ~is_doubtful(series)
    if len(series) and not chosen.any():
        raise UserError(
            f"all {len(series)} series of {folder} are doubtful, so that none is left to train on: see the "
            "reasons in series.csv; --doubtful keep trains on them"
        )
    return chosen


def say_doubtful(count: int, doubtful: Doubtful) -> None:
    """Print how many doubtful series a training excludes, or uses; nothing if there are none."""
    if count and doubtful == "keep":
        say(f"doubtful series: {count}, trained on (--doubtful keep)")
    elif count:
        say(f"doubtful series: {count}, left out of training (see series.csv; --doubtful keep uses them)")


def warn_of_many(series: pd.DataFrame, folder: Path) -> None:
    """Warn of a prepared data set of which more than `MAX_SHARE` is doubtful.

    Args:
        series: usable series, with their `status`.
        folder: folder of the data set, for the message.
    """
    count = int(is_doubtful(series).sum())
    if count > MAX_SHARE * len(series):
        warn(
            f"{count} of {len(series)} series are doubtful: training leaves them out unless --doubtful keep, "
            f"predictions include them; see their reasons in {folder / 'series.csv'}, their images in "
            f"{folder / 'images'}"
        )
