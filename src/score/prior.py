"""Constant predictions from the label frequencies alone: the baselines that any model has to beat.

Under a weighted log loss the best constant is not the prevalence but the *weighted* prevalence, `n_c w_c /
sum n w`, because the loss is a plain log loss over patients repeated by their weight. That is the
weight-aware prior. It minimises the five targets' losses, yet any-injury, which the metric takes from the
largest injury probability, stays far too low; `raised_prior` accepts a higher loss in one target for it and
is the stricter baseline.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.core.targets import ANY_INJURY_WEIGHT, CLASS_WEIGHTS, COLUMNS, TARGETS
from src.score.metric import any_injury, score

PSEUDO_COUNT = 0.5
"""Number of patients added to every class, so that a class without patients has a positive probability."""

PriorFit = Callable[[pd.DataFrame], pd.Series]
"""Computes one constant prediction of the 13 columns from labels."""


def weight_aware_prior(labels: pd.DataFrame) -> pd.Series:
    """Prevalence times the metric's class weight, renormalised in every target.

    Args:
        labels: the 13 columns, 0 or 1, one row per patient.

    Returns:
        13 probabilities, indexed by column.
    """
    weighted = (labels[list(COLUMNS)].sum() + PSEUDO_COUNT) * pd.Series(dict(CLASS_WEIGHTS))
    for columns in TARGETS.values():
        weighted[list(columns)] /= weighted[list(columns)].sum()
    return weighted


def raised_prior(labels: pd.DataFrame) -> pd.Series:
    """The weight-aware prior with the injuries of one target raised, so that any-injury gains most.

    While a target's injury probability `e` is the largest, its own loss and any-injury's are both
    cross-entropies in `e`, minimal at their weighted prevalences; their sum is minimal at the mean of the
    two. Each target is raised in turn, with low and high in proportion, and the constant with the lowest
    score on `labels` is taken (in RSNA 2023 extravasation is raised).

    Args:
        labels: `patient_id` and the 13 columns, 0 or 1, one row per patient.
    """
    prior = weight_aware_prior(labels)
    injured = any_injury(labels).mean()
    any_injury_share = ANY_INJURY_WEIGHT * injured / (ANY_INJURY_WEIGHT * injured + 1 - injured)
    candidates = [prior]
    for healthy, *injuries in TARGETS.values():
        raised = prior.copy()
        raised[healthy] = 1 - (1 - prior[healthy] + any_injury_share) / 2
        raised[injuries] *= (1 - raised[healthy]) / (1 - prior[healthy])
        candidates.append(raised)
    return min(candidates, key=lambda candidate: score(labels, constant(candidate, labels.patient_id)).score)


def constant(prior: pd.Series, patient_ids: pd.Series) -> pd.DataFrame:
    """Return the same 13 probabilities for every patient."""
    values = np.tile(prior[list(COLUMNS)].to_numpy(np.float64), (len(patient_ids), 1))
    return pd.DataFrame(values, columns=list(COLUMNS)).assign(patient_id=patient_ids.to_numpy())


def cross_fitted_prior(labels: pd.DataFrame, folds: pd.DataFrame, fit: PriorFit) -> pd.DataFrame:
    """Predict every fold with the prior of all other patients of `labels`.

    Args:
        labels: `patient_id` and the 13 columns; patients without a row in `folds` are used for fitting only.
        folds: `patient_id, fold`.
        fit: `weight_aware_prior` or `raised_prior`.

    Returns:
        `patient_id, fold` and the 13 columns, one row per row of `folds`, by fold.

    Raises:
        UserError: all labelled patients are in one fold.
    """
    predicted = []
    for fold, members in folds.groupby("fold"):
        others = labels[~labels.patient_id.isin(members.patient_id)]
        if others.empty:
            raise UserError(
                f"no patient outside fold {fold} to fit a prior on: give labels of the other folds too"
            )
        predicted.append(constant(fit(others), members.patient_id).assign(fold=fold))
    return pd.concat(predicted, ignore_index=True)
