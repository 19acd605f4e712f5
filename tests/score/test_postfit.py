"""Fitting the post-processing: its gradient, its gains, its harmlessness, and leaks refused."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.helpers.score_frames import RSNA_TABLES, draw_labels, needs_rsna_tables

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from simulated_predictions import EXACT, NoiseModel, simulate_tables

from src.core.errors import UserError
from src.core.targets import INJURIES, TARGETS
from src.data.labels import read_labels
from src.score import postfit
from src.score.metric import score
from src.score.post_objective import Parts, PostObjective
from src.score.postfit import cross_fit, deal_folds, fit_post, select_and_fit
from src.score.postprocess import PatientRows, PostProcessing

EVERYTHING = Parts(joining=True, calibration=True)


@pytest.fixture(scope="module")
def case():
    """Labels, overconfident tables of two models, and their rows."""
    labels = draw_labels(400, injury_rate=0.2)
    tables = simulate_tables(labels, [NoiseModel(), NoiseModel(model=1.0, knows_weights=False)])
    return labels, PatientRows.read(tables, labels.patient_id)


@pytest.fixture(scope="module")
def few(case):
    """The same, but the first table lacks the kidney, the second the liver and the bowel."""
    labels, rows = case
    parts = [values.copy() for values in (rows.mean, rows.most_injured)]
    for values in parts:
        values[0][:, 2] = values[1][:, 3] = values[1][:, 0] = np.nan
    return labels, PatientRows(rows.patient_ids, *parts)


def raw_score(labels: pd.DataFrame, rows: PatientRows) -> float:
    return score(labels, rows.apply(PostProcessing.identity(len(rows.mean)))).score


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("tables", ["case", "few"])
def test_objective_equals_the_score_and_its_gradient_the_slope(request, tables, is_frozen):
    labels, rows = request.getfixturevalue(tables)
    objective = PostObjective(labels, rows, EVERYTHING)
    vector = objective.start + np.random.default_rng(0).uniform(0.05, 0.3, len(objective.start))
    if is_frozen:
        objective.freeze(vector)
    pull = objective(vector)[0] - score(labels, rows.apply(objective.read(vector))).score
    assert 0 < pull < 0.01
    assert objective(objective.start)[0] == pytest.approx(raw_score(labels, rows), abs=1e-12) or is_frozen
    steps = 1e-5 * np.eye(len(vector))
    slopes = [(objective(vector + step)[0] - objective(vector - step)[0]) / 2e-5 for step in steps]
    assert objective(vector)[1] == pytest.approx(np.array(slopes), abs=1e-8)


def test_objective_clips_probabilities_as_the_metric_does(case):
    labels, rows = case
    mean = rows.mean.copy()
    injured = int(np.flatnonzero(labels.liver_high)[0])
    mean[:, injured, 3] = [1.0, 0.0, 0.0]
    hard = PatientRows(rows.patient_ids, mean, mean)
    objective = PostObjective(labels, hard, EVERYTHING)
    assert objective(objective.start)[0] == pytest.approx(raw_score(labels, hard), abs=1e-9)
    post = fit_post(labels, hard, EVERYTHING)
    assert score(labels, hard.apply(post)).score < raw_score(labels, hard) - 0.02


def test_fit_post_changes_the_named_parts_only(case):
    labels, rows = case
    joined = fit_post(labels, rows, Parts(joining=True))
    assert set(joined.temperature.values()) == set(joined.multipliers.values()) == {1.0}
    assert joined.weights != (0.5, 0.5)
    calibrated = fit_post(labels, rows, Parts(calibration=True))
    assert (calibrated.weights, calibrated.series_max, calibrated.any_injury) == ((0.5, 0.5), 0, 0)
    assert fit_post(labels, rows, Parts()) == PostProcessing.identity(2)


def test_fit_post_undoes_a_known_distortion():
    labels = draw_labels(3000, injury_rate=0.2)
    exact = PatientRows.read(simulate_tables(labels, [EXACT]), labels.patient_id)
    factor = {**dict.fromkeys(INJURIES, 1.0), "bowel_injury": 0.25}
    distorted = PostProcessing(
        (1.0,), temperature={**dict.fromkeys(TARGETS, 1.0), "liver": 0.5}, multipliers=factor
    )
    rows = PatientRows.read([exact.apply(distorted)], labels.patient_id)
    found = fit_post(labels, rows, Parts(calibration=True))
    assert found.multipliers["bowel_injury"] == pytest.approx(4.0, rel=0.3)
    assert found.temperature["liver"] == pytest.approx(2.0, rel=0.2)
    assert found.temperature["kidney"] == pytest.approx(1.0, rel=0.2)


def test_fit_post_gains_on_tables_with_missing_targets(few):
    labels, rows = few
    post = fit_post(labels, rows, EVERYTHING)
    assert score(labels, rows.apply(post)).score < raw_score(labels, rows) - 0.02


def test_fit_post_keeps_a_table_that_alone_predicts_a_target(case):
    labels, rows = case
    mean = np.stack([rows.mean[0], np.roll(rows.mean[1], 1, axis=0)])  # says nothing of the patients
    mean[0][:, 2] = np.nan
    post = fit_post(labels, PatientRows(rows.patient_ids, mean, mean), Parts(joining=True))
    assert 0 < post.weights[1] < post.weights[0]


def test_cross_fit_gains_on_overconfident_tables(case):
    labels, rows = case
    fitted = cross_fit(labels, rows, pd.Series(deal_folds(labels, 5)))
    assert fitted.predictions.patient_id.tolist() == labels.patient_id.tolist()
    assert score(labels, fitted.predictions).score < raw_score(labels, rows) - 0.02
    # the fit's own patients would promise more
    on_all = score(labels, rows.apply(fitted.post)).score
    assert on_all < score(labels, fitted.predictions).score


def test_select_and_fit_leaves_the_best_predictions_alone():
    labels = draw_labels(400, injury_rate=0.2)
    exact = PatientRows.read(simulate_tables(labels, [EXACT]), labels.patient_id)
    best = exact.apply(fit_post(labels, exact, EVERYTHING))
    rows = PatientRows.read([best], labels.patient_id)
    assert select_and_fit(labels, rows) == PostProcessing.identity(1)


def test_cross_fit_adjusts_a_fold_by_the_others_alone(case, monkeypatch):
    labels, rows = case
    folds = pd.Series(deal_folds(labels, 4))
    fitted_to, plain = [], postfit.select_and_fit

    def spy(some, own):
        fitted_to.append(set(own.patient_ids))
        return plain(some, own)

    monkeypatch.setattr(postfit, "select_and_fit", spy)
    cross_fit(labels, rows, folds)
    for fold, patients in enumerate(fitted_to[:4]):
        assert patients == set(labels.patient_id[folds != fold])
    assert fitted_to[4] == set(labels.patient_id)


def test_cross_fit_refuses_a_leak(case, monkeypatch):
    labels, rows = case
    select = PatientRows.select

    def leaky(self, chosen):
        chosen = np.array(chosen)
        chosen[0] = True
        return select(self, chosen)

    monkeypatch.setattr(PatientRows, "select", leaky)
    monkeypatch.setattr(postfit, "select_and_fit", lambda labels, rows: PostProcessing.identity(2))
    with pytest.raises(UserError, match="patient 100 would be adjusted by a fit on the same patient"):
        cross_fit(labels, rows, pd.Series(deal_folds(labels, 5)))


def test_cross_fit_refuses_too_few_positives():
    labels = draw_labels(60, injury_rate=0.2)
    rows = PatientRows.read(simulate_tables(labels, [NoiseModel()]), labels.patient_id)
    with pytest.raises(UserError, match=r"too few positives to fit on: \w+ has \d patients outside fold 0"):
        cross_fit(labels, rows, pd.Series(deal_folds(labels, 5)))


def test_cross_fit_refuses_a_single_fold(case):
    labels, rows = case
    with pytest.raises(UserError, match="at least two"):
        cross_fit(labels, rows, pd.Series(np.zeros(len(labels))))


def test_deal_folds_balances_injuries():
    labels = draw_labels(203, injury_rate=0.1)
    folds = deal_folds(labels, 5)
    assert np.bincount(folds).tolist() == [41, 41, 41, 40, 40]
    counts = labels.groupby(folds)[list(INJURIES)].sum()
    assert (counts.max() - counts.min()).max() <= 4
    assert (deal_folds(labels, 5) == folds).all() and (deal_folds(labels, 5, seed=1) != folds).any()


@pytest.mark.slow
@needs_rsna_tables
@pytest.mark.parametrize("models", [[EXACT], [NoiseModel(), NoiseModel(model=0.8)]], ids=["exact", "noisy"])
def test_cross_fit_never_worsens_the_competition_labels(models):
    labels = read_labels(RSNA_TABLES / "train.csv")
    rows = PatientRows.read(simulate_tables(labels, models), labels.patient_id)
    fitted = cross_fit(labels, rows, pd.Series(deal_folds(labels, 5)))
    assert score(labels, fitted.predictions).score < raw_score(labels, rows) + 0.001
