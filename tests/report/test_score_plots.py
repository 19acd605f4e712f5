"""What the calibration plot draws, from predictions of which the right curve is known."""

import cv2
import numpy as np
import pandas as pd
import pytest

from src.core.targets import ANY_INJURY_WEIGHT, CLASS_WEIGHTS, COLUMNS, TARGETS
from src.report.score_plots import calibration_points, plot_scores

PATIENTS = 20_000


@pytest.fixture(scope="module")
def exact() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Labels, and the best predictions of each target: its probabilities times the metric's weights."""
    rng = np.random.default_rng(0)
    labels = pd.DataFrame({"patient_id": [str(row) for row in range(PATIENTS)]})
    predictions = labels.copy()
    for columns in TARGETS.values():
        shares = rng.dirichlet([1.0] * len(columns), PATIENTS)
        drawn = (rng.random((PATIENTS, 1)) > shares.cumsum(axis=1)).sum(axis=1).clip(max=len(columns) - 1)
        labels[list(columns)] = np.eye(len(columns), dtype=int)[drawn]
        weighted = shares * [CLASS_WEIGHTS[column] for column in columns]
        predictions[list(columns)] = weighted / weighted.sum(axis=1, keepdims=True)
    return labels, predictions


@pytest.mark.parametrize("target", TARGETS)
def test_calibration_points_of_the_best_predictions_lie_on_the_diagonal(exact, target):
    points = calibration_points(*exact, target)
    assert list(points) == [column.rsplit("_", 1)[1] for column in TARGETS[target][1:]]
    for mean, share in points.values():
        assert mean == pytest.approx(share, abs=0.03)
        assert mean[0] < 0.1 and mean[-1] > 0.7


def test_calibration_points_of_any_injury_lie_on_the_diagonal(exact):
    labels, predictions = exact
    injured = 1 - labels.liver_healthy
    truth = labels.assign(**{name: int(name.endswith("_healthy")) for name in COLUMNS})
    truth = truth.assign(liver_healthy=1 - injured, liver_low=injured)
    share = 1 - without_weights(predictions, "liver").liver_healthy
    weighted = ANY_INJURY_WEIGHT * share / (ANY_INJURY_WEIGHT * share + 1 - share)
    predicted = predictions.assign(**{name: float(name.endswith("_healthy")) for name in COLUMNS})
    predicted = predicted.assign(liver_healthy=1 - weighted, liver_low=weighted)
    ((mean, found),) = calibration_points(truth, predicted, "any_injury").values()
    assert mean == pytest.approx(found, abs=0.03)
    assert mean[0] < 0.3 and mean[-1] > 0.9


def without_weights(predictions: pd.DataFrame, target: str) -> pd.DataFrame:
    columns = list(TARGETS[target])
    shares = predictions[columns] / [CLASS_WEIGHTS[column] for column in columns]
    return shares.div(shares.sum(axis=1), axis=0)


def test_plot_scores_draws_four_pictures(exact, tmp_path):
    labels, predictions = (frame.iloc[:500] for frame in exact)
    paths = plot_scores(labels, predictions, tmp_path)
    assert [path.stem for path in paths] == ["roc", "precision_recall", "calibration", "confusion"]
    assert all(cv2.imread(str(path)).shape[0] > 400 for path in paths)
