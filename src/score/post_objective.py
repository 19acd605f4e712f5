"""The score of adjusted predictions as a function of the post-processing's parameters, with its gradient."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.core.targets import ANY_INJURY_WEIGHT, CLASS_WEIGHTS, INJURIES, TARGETS
from src.score.metric import LOSSES, any_injury
from src.score.postprocess import GRADES, PatientRows, PostProcessing, from_vector, to_targets

PULL = 0.5
"""Standard deviation of the normal prior of the parameters around "change nothing": of log temperatures and
log multipliers, of shares, and of weights relative to equal ones. The prior weighs as much as one patient."""
LARGEST_LOG = np.log(8.0)
MIN_WEIGHT = 0.01
"""Minimum weight of a table that predicts a target which another one lacks."""
SHARES, TEMPERATURE, MULTIPLIERS = slice(0, 2), slice(2, 7), slice(7, 15)
WEIGHTS = slice(15, None)
"""Position of the weights in the vector, see `PostObjective`."""
_TINY = 1e-300
_EPS = np.finfo(np.float64).eps


@dataclass(frozen=True)
class Parts:
    """Groups of parameters that a fit may change."""

    joining: bool = False
    """weights of tables, the rule for several series, and the coupling of any injury"""
    calibration: bool = False
    """temperatures and multipliers"""


class PostObjective:
    """The competition's score of some patients, to be minimised over a vector of all parameters.

    The vector: series_max, any_injury, log temperatures (5), log multipliers (8, in the order of
    `INJURIES`), weights of the tables (divided by their sum over the tables that predict a target).
    """

    def __init__(self, labels: pd.DataFrame, rows: PatientRows, parts: Parts):
        self.rows, self.parts, self.predicted = rows, parts, rows.predicted
        self.mean, self.most_injured = (
            np.where(self.predicted[:, None, :, None], values, 0.0)
            for values in (rows.mean, rows.most_injured)
        )
        self.truth = to_targets(labels)  # (patients, targets, classes), one-hot
        class_weights = to_targets(pd.DataFrame([dict(CLASS_WEIGHTS)]))[0]
        weights = (self.truth * class_weights).sum(axis=-1)
        self.weights = weights / weights.sum(axis=0) / len(LOSSES)  # (patients, targets)
        self.injured = any_injury(labels)
        weights = np.where(self.injured == 1, ANY_INJURY_WEIGHT, 1.0)
        self.any_weights = weights / weights.sum() / len(LOSSES)
        self.tables = len(self.predicted)
        self.is_class = class_weights > 0  # two targets have no third class
        self._raised: np.ndarray | None = None

    @property
    def start(self) -> np.ndarray:
        """Vector that changes nothing."""
        start = np.zeros(WEIGHTS.start + self.tables)
        start[WEIGHTS] = 1 / self.tables
        return start

    @property
    def bounds(self) -> list[tuple[float, float]]:
        """Bounds of each parameter; those that `parts` excludes are fixed."""
        low, high = self.start, self.start
        if self.parts.joining:
            low[SHARES], high[SHARES] = 0.0, 1.0
            is_needed = (self.predicted & ~self.predicted.all(axis=0)).any(axis=1)
            low[WEIGHTS], high[WEIGHTS] = np.where(is_needed, MIN_WEIGHT, 0.0), 1.0
        if self.parts.calibration:
            for part in (TEMPERATURE, MULTIPLIERS):
                low[part], high[part] = -LARGEST_LOG, LARGEST_LOG
        return list(zip(low, high, strict=True))

    def freeze(self, vector: np.ndarray) -> None:
        """Fix the target to raise in every patient: the most injured one at `vector`.

        The score is discontinuous where another target becomes the most injured, and a gradient search stops
        there.
        """
        shares = to_targets(self.rows.apply(self.read(vector)))
        self._raised = shares[..., 1:].sum(axis=-1).argmax(axis=1)

    def read(self, vector: np.ndarray) -> PostProcessing:
        """Convert a vector to parameters."""
        weights = vector[WEIGHTS]
        temperature, multipliers = np.exp(vector[TEMPERATURE]), np.exp(vector[MULTIPLIERS])
        return PostProcessing(
            weights=tuple((weights / weights.sum()).tolist()),
            series_max=float(vector[0]),
            any_injury=float(vector[1]),
            temperature=dict(zip(TARGETS, temperature.tolist(), strict=True)),
            multipliers=dict(zip(INJURIES, multipliers.tolist(), strict=True)),
        )

    def __call__(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the score plus the prior's penalty, and its gradient."""
        value, gradient = self._score(vector)
        away = vector - self.start
        away[WEIGHTS] *= self.tables
        strength = 1 / (PULL**2 * len(self.truth))
        pull = strength * away
        pull[WEIGHTS] *= self.tables
        return value + 0.5 * strength * (away**2).sum(), gradient + pull

    def _score(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        series_max, coupling = vector[SHARES]
        sharpness = np.exp(-vector[TEMPERATURE])[:, None]  # 1 / temperature
        weights = vector[WEIGHTS][:, None] * self.predicted  # (tables, targets)
        total = weights.sum(axis=0)
        weights = weights / total

        # forward pass, as in PatientRows.apply and adjust
        joined = (1 - series_max) * self.mean + series_max * self.most_injured
        mixed = _join(weights, joined)  # (patients, targets, classes)
        logs = np.log(np.maximum(mixed, _TINY))
        scores = logs * sharpness + from_vector(vector[MULTIPLIERS])
        scores = np.where(self.is_class, scores, -np.inf)
        scores -= scores.max(axis=-1, keepdims=True)
        shares = np.exp(scores)
        sums = shares.sum(axis=-1, keepdims=True)
        log_shares = np.where(self.is_class, scores - np.log(sums), 0.0)
        shares /= sums

        patients = np.arange(len(shares))
        injury = shares[..., 1:].sum(axis=-1)
        most = injury.argmax(axis=1) if self._raised is None else self._raised
        largest = np.clip(injury[patients, most], _EPS, 1 - _EPS)
        product = np.exp(log_shares[..., 0].sum(axis=1))
        raised = np.clip((1 - coupling) * largest + coupling * (1 - product), _EPS, 1 - _EPS)

        # clipped as in the metric, or one patient of probability 0 would outweigh all others
        of_truth = (self.truth * log_shares).sum(axis=-1)  # (patients, targets)
        value = -(self.weights * np.maximum(of_truth, np.log(_EPS))).sum()
        counted = np.where(of_truth > np.log(_EPS), self.weights, 0.0)
        most_weight = self.weights[patients, most]
        is_hurt = 1 - self.truth[patients, most, 0]  # in the target that is raised
        change = np.where(is_hurt, np.log(largest) - np.log(raised), np.log1p(-largest) - np.log1p(-raised))
        value += (most_weight * change).sum()
        any_losses = np.where(self.injured, -np.log(raised), -np.log1p(-raised))
        value += (self.any_weights * any_losses).sum()

        # backward pass
        by_raised = most_weight * _slope(is_hurt, raised) + self.any_weights * _slope(self.injured, raised)
        by_largest = by_raised * (1 - coupling) - most_weight * _slope(is_hurt, largest)
        by_scores = counted[..., None] * (shares - self.truth)
        towards_healthy = -shares
        towards_healthy[..., 0] += 1  # of log healthy
        by_scores -= (by_raised * coupling * product)[:, None, None] * towards_healthy
        healthy = shares[patients, most, 0]
        by_scores[patients, most] -= (by_largest * healthy)[:, None] * towards_healthy[patients, most]
        by_scores = np.where(self.is_class, by_scores, 0.0)

        gradient = np.empty_like(vector)
        by_mixed = np.where(mixed > _TINY, by_scores * sharpness / np.maximum(mixed, _TINY), 0.0)
        gradient[0] = (by_mixed * _join(weights, self.most_injured - self.mean)).sum()
        gradient[1] = (by_raised * (1 - product - largest)).sum()
        gradient[TEMPERATURE] = -(by_scores * logs * sharpness).sum(axis=(0, 2))
        gradient[MULTIPLIERS] = by_scores.sum(axis=0)[*GRADES]
        by_weights = (joined * by_mixed).sum(axis=1).sum(axis=-1)  # (tables, targets)
        by_weights = np.where(self.predicted, by_weights - (weights * by_weights).sum(axis=0), 0.0)
        gradient[WEIGHTS] = (by_weights / total).sum(axis=1)
        return float(value), gradient


def _join(weights: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Mean over tables, with weights (tables, targets)."""
    return np.einsum("tk,tpkc->pkc", weights, tables)


def _slope(truth: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Derivative of the binary log loss with respect to the probability."""
    return np.where(truth, -1 / probability, 1 / (1 - probability))
