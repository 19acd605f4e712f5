"""The 13 columns as an array of targets by classes, which arithmetic over all targets at once needs."""

import numpy as np
import pandas as pd

from src.core.targets import COLUMNS, GROUPS

N_CLASSES = max(map(len, GROUPS.values()))
_places = [(target, grade) for target, columns in enumerate(GROUPS.values()) for grade in range(len(columns))]
_ALL = tuple(np.array(_places).T)
GRADES = tuple(np.array([place for place in _places if place[1]]).T)
"""Index of the 8 injuries in (targets, classes), in the order of `INJURIES`."""


def to_targets(frame: pd.DataFrame) -> np.ndarray:
    """(rows, targets, classes), healthy first; a target of two classes has 0 as its third."""
    values = np.zeros((len(frame), len(GROUPS), N_CLASSES))
    values[:, *_ALL] = frame[list(COLUMNS)].to_numpy(np.float64)
    return values


def from_targets(values: np.ndarray) -> pd.DataFrame:
    """The 13 columns of what `to_targets` gave."""
    return pd.DataFrame(values[:, *_ALL], columns=list(COLUMNS))


def from_vector(values: np.ndarray, others: float = 0.0) -> np.ndarray:
    """(targets, classes) with a value for each of `INJURIES`, and `others` elsewhere."""
    array = np.full((len(GROUPS), N_CLASSES), others)
    array[GRADES] = values
    return array
