"""Linear and k-NN probes of frozen features: the organ at a tile's centre, and the height of a slice.

A linear model and a k-NN are fitted on some patients and tested on the others, in both directions, so that
every patient is tested once. The network is not trained.
"""

from collections.abc import Callable

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from src.core.targets import ORGANS
from src.probe.estimates import FEW, Estimate, ratio
from src.probe.pooling import accuracy_estimate, auc_estimate, pooled_estimate
from src.probe.tiles import ProbeSet

NEIGHBOURS = 20
MAX_LACKING = 0.1
"""Maximum share of patients that may lack an organ which is a class."""

Fit = Callable[[int], BaseEstimator]
"""Creates a model for a number of training rows."""

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


def organ_estimates(tiles: ProbeSet, seed: int) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Balanced accuracy of the organ at a tile's centre: `organ/<logistic or knn>`, between patients.

    Each organ that is labelled in nearly every patient is a class; everything else, including other organs,
    is one more class. If some patients have only the liver labelled, this is liver against everything else.
    With fewer than `FEW` patients there is also `organ_within/<patient>/...`: all organs of one patient,
    fitted on every other block of slices. Blocks touch, so this is easier than between patients. And there
    is `organ_auc/<organ>/<patient>` for every organ that several patients have, see `organ_auc`.

    Returns:
        The estimates, and the reason for each one that cannot be measured.
    """
    patients = np.unique(tiles.patient)
    common = _common_organs(tiles)
    tested = tiles.take(_has_all(tiles, common))
    folds = patient_folds(tested.patient, seed)
    estimates, absent = {}, {}
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
            estimates[f"organ/{name}"] = _accuracy(tested, classes, folds, fit, seed)
    for patient in patients if len(patients) < FEW else ():
        own_tiles = tiles.take(tiles.patient == patient)
        if len(np.unique(own_tiles.target)) < 3:
            absent[f"organ_within/{patient}"] = "fewer than two organs are labelled"
            continue
        is_odd = own_tiles.block % 2 == 1
        folds = [(is_odd, ~is_odd), (~is_odd, is_odd)]
        if not _can_fit(own_tiles.target, folds):
            absent[f"organ_within/{patient}"] = "too few slices"
            continue
        for name, fit in CLASSIFIERS.items():
            estimates[f"organ_within/{patient}/{name}"] = _accuracy(
                own_tiles, own_tiles.target, folds, fit, seed
            )
    return estimates | (organ_auc(tiles, seed) if len(patients) < FEW else {}), absent


def organ_auc(tiles: ProbeSet, seed: int) -> dict[str, Estimate]:
    """AUC of tiles of an organ against all others of a patient, by a logistic fitted on the other patients.

    Returns:
        `organ_auc/<organ>/<tested patient>` for the patients of each organ that several have; the interval
        resamples blocks of the patient's slices.
    """
    estimates = {}
    for organ, label in ORGANS.items():
        patients = [patient for patient, having in _organs_of(tiles).items() if label in having]
        for patient in patients if len(patients) > 1 else ():
            is_tested, is_organ = tiles.patient == patient, (tiles.target == label).astype(np.int64)
            fitted = np.isin(tiles.patient, patients) & ~is_tested
            if not _can_fit(is_organ, [(fitted, is_tested), (is_tested, fitted)]):
                continue
            model = fit_on(tiles, is_organ, fitted, CLASSIFIERS["logistic"], np.random.default_rng(seed))
            tested = tiles.take(is_tested)
            score = model.decision_function(tested.features)[:, None]
            is_positive = (tested.target == label)[:, None]
            estimates[f"organ_auc/{organ}/{patient}"] = auc_estimate(
                score, is_positive, tested.patient, tested.block, seed
            )
    return estimates


def height_estimates(slices: ProbeSet, seed: int) -> tuple[dict[str, Estimate], dict[str, str]]:
    """The height of a slice in its series, between patients: `z_position/<ridge or knn>/<r2 or mae_mm>`.

    R2 refers to the relative height, 0 head to 1 feet; the error in mm is the height's error times the extent
    of the series. Chance is the mean height of the training slices. Scans that cover different parts of the
    body make the task harder, equally for every network.

    Returns:
        The estimates, and the reason if there are none.
    """
    folds = patient_folds(slices.patient, seed)
    if not folds:
        return {}, {"z_position": "a single patient"}
    if not _can_fit(slices.target, folds):
        return {}, {"z_position": "too few slices"}
    estimates, true = {}, slices.target
    constant = predict(slices, true, folds, lambda rows: DummyRegressor(), seed)
    for name, fit in REGRESSORS.items():
        error = np.abs(predict(slices, true, folds, fit, seed) - true)
        # per row: count, height, height squared, squared error, error in mm
        rows = np.stack([np.ones_like(true), true, true**2, error**2, error * slices.extent_mm], axis=1)
        chance_mm = float((np.abs(constant - true) * slices.extent_mm).mean())
        for kind, value_of, chance in (("r2", _r2, 0.0), ("mae_mm", _mean_mm, chance_mm)):
            estimates[f"z_position/{name}/{kind}"] = pooled_estimate(
                rows, slices.patient, slices.block, value_of, chance, seed
            )
    return estimates, {}


def patient_folds(patient: np.ndarray, seed: int) -> list[Fold]:
    """Return halves of the patients, each used once for fitting and once for testing; fewer than `FEW`
    patients are tested one by one. A single patient gives no fold."""
    names = np.random.default_rng(seed).permutation(np.unique(patient))
    if len(names) < 2:
        return []
    tested = np.array_split(names, 2 if len(names) >= FEW else len(names))
    return [(~np.isin(patient, names), np.isin(patient, names)) for names in tested]


def predict(data: ProbeSet, target: np.ndarray, folds: list[Fold], fit: Fit, seed: int) -> np.ndarray:
    """Predict (M,) targets with models fitted without the row's own fold, on standardised features.

    Integer targets are classes, see `fit_on`.
    """
    predicted = np.empty_like(target)
    rng = np.random.default_rng(seed)
    for fitted, tested in folds:
        predicted[tested] = fit_on(data, target, fitted, fit, rng).predict(data.features[tested])
    return predicted


def fit_on(
    data: ProbeSet, target: np.ndarray, fitted: np.ndarray, fit: Fit, rng: np.random.Generator
) -> Pipeline:
    """Fit a model of targets (M,) on rows `fitted` (M,); of integer targets, on the same number per class."""
    rows = rng.permutation(np.flatnonzero(fitted))
    if np.issubdtype(target.dtype, np.integer):
        classes, counts = np.unique(target[rows], return_counts=True)
        rows = np.concatenate([rows[target[rows] == label][: counts.min()] for label in classes])
    model = make_pipeline(StandardScaler(), fit(len(rows)))
    return model.fit(data.features[rows], target[rows])


def _can_fit(target: np.ndarray, folds: list[Fold]) -> bool:
    return all(len(np.unique(target[fitted])) > 1 and tested.any() for fitted, tested in folds)


def _accuracy(data: ProbeSet, target: np.ndarray, folds: list[Fold], fit: Fit, seed: int) -> Estimate:
    predicted = predict(data, target, folds, fit, seed)
    return accuracy_estimate(predicted, target, data.patient, data.block, seed)


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
    """Return the organs that at most a share `MAX_LACKING` of the patients lack."""
    having = list(_organs_of(tiles).values())
    return [
        label
        for label in ORGANS.values()
        if having and sum(label not in organs for organs in having) <= MAX_LACKING * len(having)
    ]


def _has_all(tiles: ProbeSet, organs: list[int]) -> np.ndarray:
    """bool (M,): tiles of patients with all of `organs`, so that the remaining class has none of them."""
    complete = [patient for patient, having in _organs_of(tiles).items() if having >= set(organs)]
    return np.isin(tiles.patient, complete)
