"""The metric equals the official rules, and each broken rule is named."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from src.core.errors import UserError
from src.core.targets import CLASS_WEIGHTS, TARGETS
from src.score.metric import score, weighted_log_loss
from tests.helpers.score_frames import draw_labels, draw_predictions, healthy_but


def official_score(labels: pd.DataFrame, predictions: pd.DataFrame) -> float:
    """The competition's rules by scikit-learn, rows already in the same order."""
    losses = []
    probabilities = {}
    for target, columns in TARGETS.items():
        values = predictions[list(columns)].to_numpy()
        probabilities[target] = values / values.sum(axis=1, keepdims=True)
        truth = labels[list(columns)].to_numpy()
        weights = truth @ np.array([CLASS_WEIGHTS[column] for column in columns])
        losses.append(log_loss(truth, probabilities[target], sample_weight=weights))
    predicted = np.max([1 - values[:, 0] for values in probabilities.values()], axis=0)
    weights = np.where(labels.any_injury == 1, 6, 1)
    losses.append(log_loss(labels.any_injury, predicted, sample_weight=weights))
    return float(np.mean(losses))


@pytest.mark.parametrize("seed", range(5))
def test_score_equals_scikit_learn(seed):
    labels = draw_labels(60, seed)
    predictions = draw_predictions(labels, seed)
    assert score(labels, predictions).score == pytest.approx(official_score(labels, predictions), abs=1e-9)


@pytest.mark.parametrize(
    ("column", "weight"),
    [
        ("bowel_injury", 2),
        ("extravasation_injury", 6),
        ("liver_low", 2),
        ("kidney_low", 2),
        ("spleen_high", 4),
    ],
)
def test_score_weighs_each_injury(column, weight):
    target = column.split("_")[0]
    labels = healthy_but({f"{target}_healthy": 0, column: 1}, {})
    share = 1 / len(TARGETS[target])
    predictions = healthy_but(dict.fromkeys(TARGETS[target], share), {})
    expected = -weight * np.log(share) / (weight + 1)
    assert score(labels, predictions).losses[target] == pytest.approx(expected)


def test_weighted_log_loss_clips_at_the_float64_epsilon():
    truth, probabilities = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert weighted_log_loss(truth, probabilities, np.ones(1)) == pytest.approx(-np.log(np.finfo(float).eps))


def test_score_matches_rows_by_patient():
    labels = draw_labels(30)
    predictions = draw_predictions(labels)
    shuffled = predictions.sample(frac=1, random_state=3)
    assert score(labels, shuffled) == score(labels, predictions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="liver_low"), "liver_low"),
        (lambda frame: frame.assign(liver_low="much"), "liver_low"),
        (lambda frame: frame.assign(liver_low=[1, np.nan, 1]), "liver_low of patient 101 is not a finite"),
        (lambda frame: frame.assign(bowel_injury=[np.inf, 1, 1]), "bowel_injury of patient 100 is not a fin"),
        (lambda frame: frame.assign(kidney_high=[0.1, 0.1, -0.1]), "kidney_high of patient 102 is negative"),
        (lambda frame: frame.assign(bowel_healthy=0, bowel_injury=0), "bowel.* of patient 100 is 0"),
        (
            lambda frame: frame.iloc[:2],
            "lack 1 of the 3 patients of the labels, the first is 102",
        ),
        (lambda frame: pd.concat([frame, frame.iloc[:1].assign(patient_id="9")]), "the labels lack .* is 9"),
        (lambda frame: pd.concat([frame, frame.iloc[:1]]), "patient 100 more than once"),
        (lambda frame: frame.drop(columns="patient_id"), "patient_id"),
    ],
)
def test_score_names_the_column_or_patient_of_a_broken_rule(change, message):
    labels = draw_labels(3)
    with pytest.raises(UserError, match=message):
        score(labels, change(draw_predictions(labels)))


def test_score_refuses_labels_without_exactly_one_class():
    labels = draw_labels(3)
    with pytest.raises(UserError, match="labels: spleen of patient 101"):
        score(labels.assign(spleen_healthy=[1, 0, 1], spleen_low=0, spleen_high=0), draw_predictions(labels))
