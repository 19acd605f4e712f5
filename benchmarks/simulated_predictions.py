"""Out-of-fold tables as a classifier might write them, drawn from true labels by a noise model.

For every patient and target one number is drawn from a normal distribution with the class's mean of
`SEPARATION` and standard deviation 1: what the images show. Every series adds its noise, and every table
(model). A model that knows the frequencies and weights of the classes, but not of its noise, turns the sum
into probabilities, sharpened by 1 / temperature (overconfidence).

Without noise and at temperature 1 they minimise each target's loss; only the coupling of any injury can gain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.core.targets import CLASS_WEIGHTS, TARGETS

SEPARATION = {"healthy": 0.0, "low": 1.5, "high": 3.0, "injury": 2.0}


@dataclass(frozen=True)
class NoiseModel:
    """How far a table is from the best possible probabilities."""

    series: float = 0.5
    """standard deviation of what differs between two series of a patient"""
    model: float = 0.4
    """standard deviation of what differs between two tables"""
    temperature: float = 0.6
    """below 1: overconfident"""
    knows_weights: bool = True
    """whether the model was trained with the metric's weights"""


EXACT = NoiseModel(series=0, model=0, temperature=1)


def simulate_tables(
    labels: pd.DataFrame, models: Sequence[NoiseModel], two_series: float = 0.5, seed: int = 0
) -> list[pd.DataFrame]:
    """One table per model: `patient_id, series_id` and the 13 columns, one row per series.

    Args:
        labels: `patient_id` and the label columns.
        two_series: share of patients with two series, the same in every table.
        seed: of all draws.
    """
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(len(labels)), 1 + (rng.random(len(labels)) < two_series))
    ids = pd.DataFrame({"patient_id": labels.patient_id.to_numpy()[patient]}).assign(
        series_id=[str(number) for number in range(len(patient))]
    )
    seen = {}
    for target, columns in TARGETS.items():
        centres = np.array([SEPARATION[column.rsplit("_", 1)[1]] for column in columns])
        truth = labels[list(columns)].to_numpy().argmax(axis=1)
        seen[target] = centres, (centres[truth] + rng.normal(size=len(labels)))[patient]
    shared = {target: rng.normal(size=len(patient)) for target in TARGETS}
    return [_answer(labels, ids, seen, shared, model, rng) for model in models]


def _answer(
    labels: pd.DataFrame,
    ids: pd.DataFrame,
    seen: dict[str, tuple[np.ndarray, np.ndarray]],
    series_noise: dict[str, np.ndarray],
    model: NoiseModel,
    rng: np.random.Generator,
) -> pd.DataFrame:
    table = ids.copy()
    for target, columns in TARGETS.items():
        centres, exact = seen[target]
        x = exact + model.series * series_noise[target] + model.model * rng.normal(size=len(ids))
        share = labels[list(columns)].mean().to_numpy()
        if model.knows_weights:
            share = share * [CLASS_WEIGHTS[column] for column in columns]
        logits = (np.log(share) - (x[:, None] - centres) ** 2 / 2) / model.temperature
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        table[list(columns)] = shares / shares.sum(axis=1, keepdims=True)
    return table
