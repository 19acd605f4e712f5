"""How well predictions rank patients: area under the ROC curve (AUC) of each injury grade against healthy."""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from src.core.targets import GROUPS
from src.score.metric import align, any_injury, normalise


def auc_per_grade(labels: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """AUC of every injury grade against the healthy patients of the same target, and of any injury.

    Patients are ranked by the predicted `1 - healthy` (the predicted any-injury for the last row), so that
    low and high grade are judged by one ranking: a low-grade injury should be harder to see. Other grades are
    left out.

    Returns:
        `injury` (a column of the competition, or any_injury), `positives, negatives, auc`; `auc` is NaN where
        one of the two classes is empty.

    Raises:
        UserError: as `metric.score`.
    """
    probabilities = normalise(align(predictions, labels.patient_id))
    rows = []
    for healthy, *injuries in GROUPS.values():
        ranking = 1 - probabilities[healthy].to_numpy()
        for injury in injuries:
            kept = ((labels[healthy] == 1) | (labels[injury] == 1)).to_numpy()
            rows.append(_row(injury, labels[injury].to_numpy()[kept], ranking[kept]))
    rows.append(_row("any_injury", any_injury(labels), any_injury(probabilities)))
    return pd.DataFrame(rows)


def _row(injury: str, truth: np.ndarray, ranking: np.ndarray) -> dict[str, object]:
    positives = int(truth.sum())
    negatives = len(truth) - positives
    auc = float(roc_auc_score(truth, ranking)) if positives and negatives else float("nan")
    return {"injury": injury, "positives": positives, "negatives": negatives, "auc": auc}
