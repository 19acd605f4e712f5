"""Classification measures: average precision, AUC, precision, recall and F1 per class, and their means.

The 2D-VoCo paper (arXiv 2601.14593) reports mAP and recall beside the competition's score without a formula.
Here the classes are the 13 columns of the competition, each against the rest of its target.

The measures equal scikit-learn's to the last digit. They are implemented in numpy, because importing
scikit-learn takes longer than scoring.
"""

import numpy as np
import pandas as pd

from src.core.targets import TARGETS
from src.score.metric import align, any_injury, normalise

MEASURES = ("average_precision", "auc", "precision", "recall", "f1")
"""Measures of a class; all lie in 0..1 and higher is better."""


def class_metrics(labels: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Compute the measures of every class.

    Average precision and AUC rank patients by the column's normalised probability; the average precision of a
    constant prediction is the class's share of patients. For precision, recall and F1 each patient is
    assigned the class of highest probability in each target; ties go to the first column, and in targets of
    two classes injury needs more than 0.5. The precision of a class that is assigned to no patient is 0.

    Args:
        labels: `patient_id` and the 13 columns, 0 or 1, one row per patient.
        predictions: the same columns as probabilities, in any order of rows.

    Returns:
        One row per class: `class, positives, predicted` (numbers of patients) and the measures, which are NaN
        where no patient or every patient has the class.
    """
    probabilities = normalise(align(predictions, labels.patient_id))
    rows = []
    for columns in TARGETS.values():
        chosen = probabilities[list(columns)].to_numpy().argmax(axis=1)
        for index, name in enumerate(columns):
            truth, given = labels[name].to_numpy(), chosen == index
            positives, predicted = int(truth.sum()), int(given.sum())
            row = {"class": name, "positives": positives, "predicted": predicted}
            if 0 < positives < len(truth):
                found = int(truth[given].sum())
                row["average_precision"] = average_precision(truth, probabilities[name].to_numpy())
                row["auc"] = roc_auc(truth, probabilities[name].to_numpy())
                row["precision"] = found / predicted if predicted else 0.0
                row["recall"] = found / positives
                row["f1"] = 2 * found / (positives + predicted)
            rows.append(row)
    return pd.DataFrame(rows, columns=["class", "positives", "predicted", *MEASURES])


def class_means(table: pd.DataFrame, *, injuries_only: bool = False) -> dict[str, float]:
    """Means of the measures over the classes that have them, under `map, auc, precision, recall, f1`.

    Args:
        table: table of `class_metrics`.
        injuries_only: exclude the five healthy classes, which are common and easy.

    Returns:
        NaN where no class has the measures.
    """
    healthy = table["class"].str.endswith("_healthy")
    means = table.loc[~healthy if injuries_only else slice(None), list(MEASURES)].mean()
    return means.rename({"average_precision": "map"}).to_dict()


def auc_per_grade(labels: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """AUC of every injury grade against the healthy patients of the same target, and of any injury.

    Patients are ranked by the predicted `1 - healthy` (the predicted any-injury for the last row), so that
    low and high grade use the same ranking: a low-grade injury should be harder to detect. Patients with
    another grade are excluded.

    Returns:
        `injury` (a column of the competition, or any_injury), `positives, negatives, auc`; `auc` is NaN where
        one of the two classes is empty.
    """
    probabilities = normalise(align(predictions, labels.patient_id))
    problems = {}
    for healthy, *injuries in TARGETS.values():
        ranking = 1 - probabilities[healthy].to_numpy()
        for injury in injuries:
            kept = ((labels[healthy] == 1) | (labels[injury] == 1)).to_numpy()
            problems[injury] = labels[injury].to_numpy()[kept], ranking[kept]
    problems["any_injury"] = any_injury(labels), any_injury(probabilities)
    rows = []
    for injury, (truth, ranking) in problems.items():
        positives = int(truth.sum())
        negatives = len(truth) - positives
        auc = roc_auc(truth, ranking) if positives and negatives else float("nan")
        rows.append({"injury": injury, "positives": positives, "negatives": negatives, "auc": auc})
    return pd.DataFrame(rows)


def average_precision(truth: np.ndarray, ranking: np.ndarray) -> float:
    """Sum of precisions weighted by the steps in recall, without interpolation.

    Args:
        truth: (patients,) 0 or 1, at least one of them 1.
        ranking: (patients,), higher for patients more likely to be positive.
    """
    true, false = _counts_by_threshold(truth, ranking)
    precision = np.append((true / (true + false))[::-1], 1.0)
    recall = np.append((true / true[-1])[::-1], 0.0)
    return float(-np.sum(np.diff(recall) * precision[:-1]))


def roc_auc(truth: np.ndarray, ranking: np.ndarray) -> float:
    """Area under the ROC curve by the trapezoidal rule, for rankings with both classes."""
    true, false = _counts_by_threshold(truth, ranking)
    if len(true) > 2:  # inner points of straight parts affect the last digits only; scikit-learn drops them
        kept = np.concatenate([[True], (np.diff(true, 2) != 0) | (np.diff(false, 2) != 0), [True]])
        true, false = true[kept], false[kept]
    sensitivity, fall_out = (np.append(0, counts) / counts[-1] for counts in (true, false))
    return float((np.diff(fall_out) * (sensitivity[1:] + sensitivity[:-1]) / 2.0).sum())


def _counts_by_threshold(truth: np.ndarray, ranking: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count true and false positives with each distinct ranking value as threshold, in descending order."""
    order = np.argsort(-ranking, kind="stable")
    last = np.append(np.flatnonzero(np.diff(ranking[order])), len(order) - 1)
    true = np.cumsum(truth[order])[last]
    return true, 1 + last - true
