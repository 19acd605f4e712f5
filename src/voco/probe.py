"""What frozen features know: the organ at a tile's centre, and the height of a slice.

A linear model and a k-NN are fitted on some patients and tested on the others, so that every patient is tested
once: two halves, one for one where there are fewer than `FEW` patients. Nothing of the network is trained.
"""

from collections.abc import Callable

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from src.data.stack import ORGANS
from src.voco.figures import FEW, Figure, percentile_interval, ratio, resampled_counts
from src.voco.probe_tiles import BLOCKS, ProbeSet

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


def organ_figures(tiles: ProbeSet, seed: int) -> tuple[dict[str, Figure], dict[str, str]]:
    """Balanced accuracy of the organ at a tile's centre, over patients: `organ/<logistic or knn>`.

    A class is an organ that nearly every patient has labelled; the rest is one class, other organs in it. With
    the liver alone labelled in some sets this is liver against everything else. With fewer than `FEW` patients
    `organ_within/...` is added: all organs of each patient, learnt from every other block of its slices. Blocks
    touch, so that it is easier than between patients.

    Returns:
        The figures, and for those that cannot be had why.
    """
    figures, absent = {}, {}
    if not len(tiles):
        return {}, {"organ": "no series has masks"}
    common = common_organs(tiles)
    folds = patient_folds(tiles.patient, seed)
    if not common:
        absent["organ"] = "no organ is labelled in nearly all patients"
    elif not folds:
        absent["organ"] = "a single patient has masks"
    else:
        has_all = np.isin(tiles.patient, _having(tiles, common))
        chosen = tiles.take(has_all)
        target = np.where(np.isin(chosen.target, common), chosen.target, 0)
        for name, fit in CLASSIFIERS.items():
            figures[f"organ/{name}"] = _accuracy(chosen, target, patient_folds(chosen.patient, seed), fit, seed)
    if len(np.unique(tiles.patient)) < FEW:
        several = [patient for patient in np.unique(tiles.patient) if len(_labels(tiles, patient)) > 2]
        within = tiles.take(np.isin(tiles.patient, several))
        if not several:
            absent["organ_within"] = "no patient has two organs labelled"
        else:
            folds = [
                (within.patient == patient) & (within.block % 2 == parity)
                for patient in several
                for parity in (0, 1)
            ]
            for name, fit in CLASSIFIERS.items():
                figures[f"organ_within/{name}"] = _accuracy(
                    within, within.target, folds, fit, seed, same_patient=True
                )
    return figures, absent
