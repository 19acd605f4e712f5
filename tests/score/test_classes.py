"""mAP, AUC, precision, recall and F1: equal to scikit-learn, and reported by score.py."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, classification_report, roc_auc_score

import score as score_script
from src.core.errors import UserError
from src.core.targets import COLUMNS, TARGETS
from src.score.classes import auc_per_grade, average_precision, class_means, class_metrics, roc_auc
from tests.helpers.score_frames import as_submission, draw_labels, draw_predictions, healthy_but

INJURED = {"bowel_healthy": 0, "bowel_injury": 1}
LABELS = healthy_but(INJURED, INJURED, {}, {})
PREDICTED = healthy_but(
    {"bowel_healthy": 0.1, "bowel_injury": 0.9},  # found, ranked first
    {"bowel_healthy": 1.4, "bowel_injury": 0.6},  # 0.3 once normalised: missed, ranked third
    {"bowel_healthy": 0.2, "bowel_injury": 0.3},  # 0.6: a false alarm, ranked second
    {"bowel_healthy": 0.9, "bowel_injury": 0.1},
)


def test_class_means_exclude_classes_of_no_or_every_patient():
    table = class_metrics(LABELS, PREDICTED)
    measured = table[table.recall.notna()]
    assert list(measured["class"]) == ["bowel_healthy", "bowel_injury"]
    injuries = class_means(table, injuries_only=True)
    assert injuries == pytest.approx({"map": 5 / 6, "auc": 0.75, "precision": 0.5, "recall": 0.5, "f1": 0.5})
    assert class_means(table)["map"] == pytest.approx(5 / 6)  # the healthy are ranked alike


@pytest.mark.parametrize("seed", range(3))
def test_class_metrics_equal_scikit_learn(seed):
    labels = draw_labels(80, seed)
    predictions = draw_predictions(labels, seed)
    predictions["spleen_high"] *= 1e-6  # never predicted: its precision is 0
    table = class_metrics(labels, predictions.sample(frac=1, random_state=seed)).set_index("class")
    for members in map(list, TARGETS.values()):
        values = predictions[members].to_numpy()
        values = values / values.sum(axis=1, keepdims=True)
        truth = labels[members].to_numpy()
        expected = classification_report(
            truth.argmax(axis=1), values.argmax(axis=1), output_dict=True, zero_division=0
        )
        for index, name in enumerate(members):
            assert table.precision[name] == expected[str(index)]["precision"]
            assert table.recall[name] == expected[str(index)]["recall"]
            precision = average_precision_score(truth[:, index], values[:, index])
            assert table.average_precision[name] == precision
            assert table.auc[name] == roc_auc_score(truth[:, index], values[:, index])
            assert table.f1[name] == expected[str(index)]["f1-score"]


@pytest.mark.parametrize("levels", [1, 2, 7, 1000])
def test_average_precision_and_roc_auc_of_ties_equal_scikit_learn(levels):
    rng = np.random.default_rng(levels)
    truth = (rng.random(500) < 0.2).astype(int)
    ranking = np.round(rng.random(500) + truth, 1) if levels == 7 else rng.integers(0, levels, 500) / levels
    assert average_precision(truth, ranking) == average_precision_score(truth, ranking)
    assert roc_auc(truth, ranking) == roc_auc_score(truth, ranking)


def test_auc_per_grade_ranks_each_grade_against_healthy_patients():
    labels = healthy_but({}, {"liver_healthy": 0, "liver_low": 1}, {"liver_healthy": 0, "liver_high": 1})
    predictions = labels.assign(liver_healthy=[0.5, 0.8, 0.1], liver_low=0.1, liver_high=[0.4, 0.1, 0.8])
    auc = auc_per_grade(labels, predictions).set_index("injury")
    assert auc.auc["liver_low"] == 0  # the low-grade patient is ranked below the healthy one
    assert auc.auc["liver_high"] == 1
    assert (auc.positives["liver_low"], auc.negatives["liver_low"]) == (1, 1)
    assert math.isnan(auc.auc["kidney_low"])  # no patient has one


def test_class_metrics_refuse_other_patients():
    with pytest.raises(UserError, match="lack 1 of the 4 patients"):
        class_metrics(LABELS, PREDICTED.iloc[1:])


def test_score_reports_class_means_and_excluded_classes(tmp_path, capsys):
    labels = draw_labels(40).assign(bowel_healthy=1, bowel_injury=0).drop(columns="any_injury")
    labels.to_csv(tmp_path / "labels.csv", index=False)
    predictions = draw_predictions(labels)
    as_submission(predictions).to_csv(tmp_path / "submission.csv", index=False)
    files = f"--labels {tmp_path}/labels.csv --submission {tmp_path}/submission.csv"
    score_script.main(f"{files} --json {tmp_path}/score.json".split())
    classes = json.loads((tmp_path / "score.json").read_text())["classes"]
    means = class_means(class_metrics(labels, predictions))
    assert classes["all"] == pytest.approx(means)
    assert set(classes["per_class"]) == set(COLUMNS)
    assert classes["per_class"]["bowel_injury"]["recall"] is None
    assert classes["left_out"] == ["bowel_healthy", "bowel_injury"]
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if "mean of all" in line)
    assert line.split()[-5:] == [f"{value:.4f}" for value in means.values()]
    assert "left out, as no patient or every patient has it: bowel_healthy, bowel_injury" in printed
