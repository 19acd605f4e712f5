"""Priors: the best constants, fitted on the other folds, and their scores on the competition's labels."""

import pandas as pd
import pytest

from src.core.targets import COLUMNS, TARGETS
from src.data.labels import read_labels, read_probabilities
from src.score.metric import score
from src.score.prior import constant, cross_fitted_prior, raised_prior, weight_aware_prior
from tests.helpers.score_frames import RSNA_TABLES, draw_labels, needs_rsna_tables


def test_weight_aware_prior_is_the_best_constant_for_every_target():
    labels = draw_labels(400, injury_rate=0.1)
    best = score(labels, constant(weight_aware_prior(labels), labels.patient_id)).losses
    for target, (healthy, *_) in TARGETS.items():
        for factor in (0.9, 1.1):
            other = weight_aware_prior(labels)
            other[healthy] *= factor
            assert score(labels, constant(other, labels.patient_id)).losses[target] > best[target]


def test_cross_fitted_prior_uses_the_other_folds_only():
    labels = draw_labels(40)
    folds = pd.DataFrame({"patient_id": labels.patient_id, "fold": [0, 1] * 20})
    prior = cross_fitted_prior(labels, folds, weight_aware_prior).set_index("patient_id")
    others = weight_aware_prior(labels[folds.fold == 1])
    assert prior.loc["100", list(COLUMNS)].to_numpy() == pytest.approx(others.to_numpy())


@needs_rsna_tables
def test_priors_have_their_documented_scores_on_the_competition_labels():
    labels = read_labels(RSNA_TABLES / "train.csv")
    sample = read_probabilities(RSNA_TABLES / "sample_submission.csv")
    for prediction, expected in (
        (sample[list(COLUMNS)].iloc[0], 0.884),
        (labels[list(COLUMNS)].mean(), 0.786),
        (weight_aware_prior(labels), 0.609),
        (raised_prior(labels), 0.579),
    ):
        assert round(score(labels, constant(prediction, labels.patient_id)).score, 3) == expected
