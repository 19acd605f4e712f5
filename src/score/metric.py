"""The competition's metric, by its published rules (RSNA 2023 Abdominal Trauma Detection, evaluation page).

Six sample-weighted log losses, of the five targets and of `any_injury`, and their plain mean. The official
code aligns rows by position; here they are aligned by `patient_id`, and unknown, missing or repeated patients
are refused. scikit-learn's `log_loss` has changed its behaviour between versions, so the few lines are
written out in numpy.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.core.targets import ANY_INJURY_WEIGHT, CLASS_WEIGHTS, COLUMNS, TARGETS

LOSSES = (*TARGETS, "any_injury")
"""Names of the six losses, in the order of every array here."""

_EPS = np.finfo(np.float64).eps
_HEALTHY = [columns[0] for columns in TARGETS.values()]


@dataclass(frozen=True)
class Score:
    """The metric: `score` is the mean of the six `losses`; lower is better."""

    score: float
    losses: dict[str, float]


@dataclass(frozen=True)
class LossTerms:
    """Contribution of each patient to the six losses, before averaging.

    `losses` and `weights` have shape (patients, 6), in the order of `LOSSES`.
    """

    losses: np.ndarray
    weights: np.ndarray

    def average(self, counts: np.ndarray) -> np.ndarray:
        """The six losses, each divided by its own sum of weights.

        Args:
            counts: how often each patient is drawn, shape (..., patients).

        Returns:
            Shape (..., 6).
        """
        return (counts @ (self.weights * self.losses)) / (counts @ self.weights)


def score(labels: pd.DataFrame, predictions: pd.DataFrame) -> Score:
    """Score predictions against labels, both with `patient_id` and the 13 columns, in any order of rows.

    Raises:
        UserError: the two tables name different patients or one of them twice, or a rule of the competition
            is broken (see `check_probabilities`); the message names the column or the patient.
    """
    losses = {
        name: weighted_log_loss(truth, probabilities, weights)
        for name, (truth, probabilities, weights) in zip(
            LOSSES, _loss_inputs(labels, predictions), strict=True
        )
    }
    return Score(float(np.mean(list(losses.values()))), losses)


def loss_terms(labels: pd.DataFrame, predictions: pd.DataFrame) -> LossTerms:
    """Return each patient's log losses and weights, in the order of `labels`. Raises as `score` does."""
    inputs = list(_loss_inputs(labels, predictions))
    losses = [_log_losses(truth, probabilities) for truth, probabilities, _ in inputs]
    return LossTerms(np.stack(losses, axis=1), np.stack([weights for _, _, weights in inputs], axis=1))


def weighted_log_loss(truth: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> float:
    """Log loss of normalised `probabilities`, averaged over rows with `weights`.

    Args:
        truth: one-hot, shape (rows, classes).
        probabilities: shape (rows, classes); clipped to [eps, 1 - eps] of float64.
        weights: shape (rows,).
    """
    return float(np.average(_log_losses(truth, probabilities), weights=weights))


def normalise(predictions: pd.DataFrame) -> pd.DataFrame:
    """Divide every target's columns by their row sum. Raises as `check_probabilities` does."""
    check_probabilities(predictions)
    shares = {}
    for columns in TARGETS.values():
        values = predictions[list(columns)].to_numpy(np.float64)
        shares |= dict(zip(columns, (values / values.sum(axis=1, keepdims=True)).T, strict=True))
    return predictions.assign(**shares)


def any_injury(probabilities: pd.DataFrame) -> np.ndarray:
    """Largest `1 - healthy` over the five targets, shape (rows,); for labels, whether any target is injured.

    Args:
        probabilities: normalised.
    """
    return (1.0 - probabilities[_HEALTHY].to_numpy(np.float64)).max(axis=1)


def align(
    predictions: pd.DataFrame, patient_ids: pd.Series, what: str = "predictions", reference: str = "labels"
) -> pd.DataFrame:
    """Bring `predictions` into the order of `patient_ids`.

    Args:
        what, reference: the names of the two tables in messages.

    Raises:
        UserError: no `patient_id` column, or a patient that is repeated, missing or unknown.
    """
    if "patient_id" not in predictions.columns:
        raise UserError(f"the {what} lack the column patient_id")
    tables = {what: predictions.patient_id, reference: patient_ids}
    for name, ids in tables.items():
        if ids.duplicated().any():
            patient = ids[ids.duplicated()].iloc[0]
            raise UserError(f"the {name} have patient {patient} more than once: keep one row per patient")
    for name, other in ((what, reference), (reference, what)):
        absent = tables[other][~tables[other].isin(tables[name])]
        if len(absent):
            raise UserError(
                f"the {name} lack {len(absent)} of the {len(tables[other])} patients of the {other}, "
                f"the first is {absent.iloc[0]}"
            )
    return predictions.set_index("patient_id").loc[patient_ids].reset_index()


def check_probabilities(predictions: pd.DataFrame) -> None:
    """Apply the competition's rules to every row.

    Raises:
        UserError: a column that is missing or not numeric, or a patient with a value that is not finite, with
            a negative value, or with a target whose columns sum to 0.
    """
    _check_numbers(predictions, "predictions")
    values = predictions[list(COLUMNS)].to_numpy(np.float64)
    for bad, fault in ((~np.isfinite(values), "not a finite number"), (values < 0, "negative")):
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise UserError(
                f"predictions: {COLUMNS[column]} of patient {_patient(predictions, row)} is {fault}"
            )
    for target, columns in TARGETS.items():
        empty = predictions[list(columns)].to_numpy(np.float64).sum(axis=1) <= 0
        if empty.any():
            row = int(np.argmax(empty))
            raise UserError(
                f"predictions: {' + '.join(columns)} of patient {_patient(predictions, row)} is 0; "
                f"{target} needs at least one value above 0"
            )


def obeys_rules(predictions: pd.DataFrame) -> np.ndarray:
    """Return which rows `check_probabilities` would accept, (rows,) bool; needs all columns, all numeric."""
    values = predictions[list(COLUMNS)].to_numpy(np.float64)
    obeys = (np.isfinite(values) & (values >= 0)).all(axis=1)
    for columns in TARGETS.values():
        obeys &= predictions[list(columns)].to_numpy(np.float64).sum(axis=1) > 0
    return obeys


def check_labels(labels: pd.DataFrame) -> None:
    """Check that every target of every patient has exactly one true class.

    Raises:
        UserError: a missing column, or a patient whose target is not one-hot.
    """
    if "patient_id" not in labels.columns:
        raise UserError("the labels lack the column patient_id")
    _check_numbers(labels, "labels")
    for target, columns in TARGETS.items():
        values = labels[list(columns)].to_numpy(np.float64)
        bad = ~(np.isin(values, (0, 1)).all(axis=1) & (values.sum(axis=1) == 1))
        if bad.any():
            row = int(np.argmax(bad))
            raise UserError(
                f"labels: {target} of patient {_patient(labels, row)} must have exactly one column at 1"
            )


def _loss_inputs(
    labels: pd.DataFrame, predictions: pd.DataFrame
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield one-hot truth, probabilities (both patients x classes) and weights, for each of `LOSSES`."""
    check_labels(labels)
    probabilities = normalise(align(predictions, labels.patient_id))
    for columns in TARGETS.values():
        truth = labels[list(columns)].to_numpy(np.float64)
        yield (
            truth,
            probabilities[list(columns)].to_numpy(),
            truth @ [CLASS_WEIGHTS[column] for column in columns],
        )
    injured, predicted = any_injury(labels), any_injury(probabilities)
    yield (
        np.stack([1 - injured, injured], axis=1),
        np.stack([1 - predicted, predicted], axis=1),
        np.where(injured == 1, ANY_INJURY_WEIGHT, 1.0),
    )


def _log_losses(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    return -(truth * np.log(np.clip(probabilities, _EPS, 1 - _EPS))).sum(axis=1)


def _check_numbers(frame: pd.DataFrame, name: str) -> None:
    for column in COLUMNS:
        if column not in frame.columns:
            raise UserError(f"the {name} lack the column {column}")
        if not pd.api.types.is_numeric_dtype(frame[column]):
            raise UserError(f"the {name} have text in the column {column}, which must be numeric")


def _patient(frame: pd.DataFrame, row: int) -> str:
    return str(frame["patient_id"].iloc[row]) if "patient_id" in frame.columns else f"in row {row}"
