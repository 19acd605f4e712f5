"""Bootstrap intervals are those of resampled patients, paired and reproducible."""

import numpy as np
import pytest

from src.score.bootstrap import bootstrap_difference, bootstrap_score
from src.score.metric import LOSSES, loss_terms, score
from tests.helpers.score_frames import draw_labels, draw_predictions


def test_average_by_counts_equals_repeated_rows():
    labels = draw_labels(30)
    predictions = draw_predictions(labels)
    drawn = np.random.default_rng(0).integers(0, 30, 30)
    ids = [str(row) for row in range(30)]
    repeated = [frame.iloc[drawn].assign(patient_id=ids) for frame in (labels, predictions)]
    counts = np.bincount(drawn, minlength=30)
    by_counts = loss_terms(labels, predictions).average(counts)
    assert by_counts == pytest.approx([score(*repeated).losses[name] for name in LOSSES])


def test_bootstrap_score_widens_with_its_level():
    labels = draw_labels(200)
    predictions = draw_predictions(labels)
    narrow, wide = (bootstrap_score(labels, predictions, rounds=300, level=level) for level in (0.5, 0.95))
    assert narrow.observed == pytest.approx(score(labels, predictions).score)
    assert wide.low < narrow.low < narrow.observed < narrow.high < wide.high


def test_bootstrap_score_is_as_wide_as_the_spread_over_new_patients():
    scores, widths = [], []
    for seed in range(60):
        labels = draw_labels(150, seed)
        predictions = draw_predictions(labels, seed + 1000)
        scores.append(score(labels, predictions).score)
        interval = bootstrap_score(labels, predictions, rounds=200, level=0.9)
        widths.append(interval.high - interval.low)
    expected = np.quantile(scores, 0.95) - np.quantile(scores, 0.05)
    assert np.mean(widths) == pytest.approx(expected, rel=0.3)


def test_bootstrap_difference_is_negative_for_the_better_table():
    labels = draw_labels(300)
    good, poor = draw_predictions(labels, skill=2.0), draw_predictions(labels, skill=0.5)
    difference = bootstrap_difference(labels, good, poor.iloc[::-1])
    assert difference.low < difference.observed < difference.high < 0
    assert difference.observed == pytest.approx(score(labels, good).score - score(labels, poor).score)
    same = bootstrap_difference(labels, good, good)
    assert (same.low, same.mean, same.high) == (0, 0, 0)


def test_bootstrap_difference_is_paired():
    labels = draw_labels(200)
    predictions = draw_predictions(labels)
    slightly_worse = predictions.assign(liver_healthy=predictions.liver_healthy * 1.05)
    paired = bootstrap_difference(labels, predictions, slightly_worse, rounds=300)
    alone = bootstrap_score(labels, predictions, rounds=300)
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)


def test_bootstrap_score_follows_from_its_seed():
    labels = draw_labels(50)
    predictions = draw_predictions(labels)
    assert bootstrap_score(labels, predictions, seed=3) == bootstrap_score(labels, predictions, seed=3)
    assert bootstrap_score(labels, predictions, seed=3) != bootstrap_score(labels, predictions, seed=4)
