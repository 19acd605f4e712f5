"""What frozen features know: the organ at a tile's centre, and the height of a slice.

A linear model and a k-NN are fitted on some patients and tested on the others, both ways, so that every
patient is tested once. Nothing of the network is trained.
"""

from collections.abc import Callable

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from src.core.targets import ORGANS
from src.probe.estimates import FEW, Figure, percentile_interval, ratio, resampled_counts
from src.probe.tiles import ProbeSet

NEIGHBOURS = 20
MOST_LACKING = 0.1
"""Share of patients that may lack an organ before it is no class any more."""

Fit = Callable[[int], BaseEstimator]
"""From the number of training rows to a model."""

CLASSIFIERS: dict[str, Fit] = {
    "logistic": lambda rows: LogisticRegression(C=0.01, max_iter=1000),
    "knn": lambda rows: KNeighborsClassifier(min(NEIGHBOURS, rows), metric="cosine"),
}
REGRESSORS: dict[str, Fit] = {
    "ridge": lambda rows: RidgeCV(np.logspace(0, 5, 11)),
    "knn": lambda rows: KNeighborsRegressor(min(NEIGHBOURS, rows), metric="cosine"),
}


Fold = tuple[np.ndarray, np.ndarray]
"""bool (M,) rows to fit on, and rows to test"""


def organ_figures(tiles: ProbeSet, seed: int) -> tuple[dict[str, Figure], dict[str, str]]:
    """Balanced accuracy of the organ at a tile's centre: `organ/<logistic or knn>`, between patients.

    A class is an organ that nearly every patient has labelled; the rest is one class, other organs in it.
    With the liver alone labelled in some patients this is liver against everything else. Of fewer than `FEW`
    patients there is also `organ_within/<patient>/...`: all organs of one, learnt from every other block of
    its slices. Blocks touch, so that it is easier than between patients.

    Returns:
        The figures, and why others cannot be had.
    """
    patients = np.unique(tiles.patient)
    common = _common_organs(tiles)
    tested = tiles.take(_has_all(tiles, common))
    folds = patient_folds(tested.patient, seed)
    figures, absent = {}, {}
    if not len(tiles):
        absent["organ"] = "no series has masks"
    elif not common:
        absent["organ"] = "no organ is labelled in nearly all patients"
    elif not folds:
        absent["organ"] = "a single patient has masks"
    elif not _can_fit(tested.target, folds):
        absent["organ"] = "too few tiles"
    else:
        classes = np.where(np.isin(tested.target, common), tested.target, 0)
        for name, fit in CLASSIFIERS.items():
            figures[f"organ/{name}"] = _accuracy(tested, classes, folds, fit, seed)
    for patient in patients if len(patients) < FEW else ():
        own = tiles.take(tiles.patient == patient)
        if len(np.unique(own.target)) < 3:
            absent[f"organ_within/{patient}"] = "fewer than two organs are labelled"
            continue
        is_odd = own.block % 2 == 1
        folds = [(is_odd, ~is_odd), (~is_odd, is_odd)]
        if not _can_fit(own.target, folds):
            absent[f"organ_within/{patient}"] = "too few slices"
            continue
        for name, fit in CLASSIFIERS.items():
            figures[f"organ_within/{patient}/{name}"] = _accuracy(own, own.target, folds, fit, seed)
    return figures, absent


def height_figures(slices: ProbeSet, seed: int) -> tuple[dict[str, Figure], dict[str, str]]:
    """The height of a slice in its series, between patients: `z_position/<ridge or knn>/<r2 or mae_mm>`.

    R2 is of the relative height, 0 head to 1 feet; the error in mm is that of the height times the extent of
    the series. Chance is the mean height of the slices fitted on. Scans that cover other parts of the body
    make the task harder, and equally so for every network.

    Returns:
        The figures, and why others cannot be had.
    """
    folds = patient_folds(slices.patient, seed)
    if not folds:
        return {}, {"z_position": "a single patient"}
    if not _can_fit(slices.target, folds):
        return {}, {"z_position": "too few slices"}
    figures, true = {}, slices.target
    constant = predict(slices, true, folds, lambda rows: DummyRegressor(), seed)
    for name, fit in REGRESSORS.items():
        error = np.abs(predict(slices, true, folds, fit, seed) - true)
        # per row: count, height, height squared, squared error, error in mm
        rows = np.stack([np.ones_like(true), true, true**2, error**2, error * slices.extent_mm], axis=1)
        chance_mm = float((np.abs(constant - true) * slices.extent_mm).mean())
        figures[f"z_position/{name}/r2"] = _pooled(slices, rows, _r2, 0.0, seed)
        figures[f"z_position/{name}/mae_mm"] = _pooled(slices, rows, _mean_mm, chance_mm, seed)
    return figures, {}


def patient_folds(patient: np.ndarray, seed: int) -> list[Fold]:
    """Halves of the patients, each fitted on and tested once; fewer than `FEW` are tested one by one.

    No fold where there is a single patient.
    """
    names = np.random.default_rng(seed).permutation(np.unique(patient))
    if len(names) < 2:
        return []
    tested = np.array_split(names, 2 if len(names) >= FEW else len(names))
    return [(~np.isin(patient, names), np.isin(patient, names)) for names in tested]


def predict(data: ProbeSet, target: np.ndarray, folds: list[Fold], fit: Fit, seed: int) -> np.ndarray:
    """Predictions (M,) of models that were fitted without the row's own fold, features standardised.

    Whole-number targets are classes, and equally many rows of each are fitted on.
    """
    predicted = np.empty_like(target)
    rng = np.random.default_rng(seed)
    for fitted, tested in folds:
        rows = rng.permutation(np.flatnonzero(fitted))
        if np.issubdtype(target.dtype, np.integer):
            classes, counts = np.unique(target[rows], return_counts=True)
            rows = np.concatenate([rows[target[rows] == label][: counts.min()] for label in classes])
        model = make_pipeline(StandardScaler(), fit(len(rows)))
        predicted[tested] = model.fit(data.features[rows], target[rows]).predict(data.features[tested])
    return predicted


def _can_fit(target: np.ndarray, folds: list[Fold]) -> bool:
    return all(len(np.unique(target[fitted])) > 1 and tested.any() for fitted, tested in folds)


def _accuracy(data: ProbeSet, target: np.ndarray, folds: list[Fold], fit: Fit, seed: int) -> Figure:
    hits = predict(data, target, folds, fit, seed) == target
    classes = np.unique(target)
    of_class = target[:, None] == classes  # (M, classes)
    rows = np.concatenate([of_class & hits[:, None], of_class], axis=1).astype(np.float64)
    return _pooled(data, rows, _balanced_accuracy, 1 / len(classes), seed)


def _pooled(
    data: ProbeSet, rows: np.ndarray, figure: Callable[[np.ndarray], np.ndarray], chance: float, seed: int
) -> Figure:
    """A figure of the column sums of `rows` (M, K), and its interval over patients, or over blocks of slices.

    `figure` takes sums (rounds, K) to values (rounds,).
    """
    patients = np.unique(data.patient)
    few = len(patients) < FEW
    # a text a unit: block numbers begin anew in each patient
    units = np.char.add(data.patient, np.char.mod(" %d", data.block)) if few else data.patient
    _, unit = np.unique(units, return_inverse=True)
    sums = np.zeros((unit.max() + 1, rows.shape[1]))
    np.add.at(sums, unit, rows)
    low, high = percentile_interval(figure(resampled_counts(len(sums), seed) @ sums))
    return Figure(
        value=float(figure(sums.sum(axis=0, keepdims=True))[0]),
        low=low,
        high=high,
        over="blocks" if few else "patients",
        chance=chance,
        trials=len(rows),
        patients=len(patients),
    )


def _balanced_accuracy(sums: np.ndarray) -> np.ndarray:
    hits, tiles = np.split(sums, 2, axis=1)  # (rounds, classes) each
    return np.nanmean(ratio(hits, tiles), axis=1)


def _r2(sums: np.ndarray) -> np.ndarray:
    count, total, squares, residual, _ = sums.T
    return 1 - ratio(residual, squares - total**2 / count)


def _mean_mm(sums: np.ndarray) -> np.ndarray:
    return ratio(sums[:, 4], sums[:, 0])


def _organs_of(tiles: ProbeSet) -> dict[str, set[int]]:
    return {
        patient: set(tiles.target[tiles.patient == patient].tolist()) - {0}
        for patient in np.unique(tiles.patient).tolist()
    }


def _common_organs(tiles: ProbeSet) -> list[int]:
    """Organs that at most `MOST_LACKING` of the patients lack."""
    having = list(_organs_of(tiles).values())
    return [
        label
        for label in ORGANS.values()
        if having and sum(label not in organs for organs in having) <= MOST_LACKING * len(having)
    ]


def _has_all(tiles: ProbeSet, organs: list[int]) -> np.ndarray:
    """bool (M,): of a patient with all of `organs`, so that what is called the rest holds none of them."""
    complete = [patient for patient, having in _organs_of(tiles).items() if having >= set(organs)]
    return np.isin(tiles.patient, complete)
