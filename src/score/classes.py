"""How well predictions find each class: average precision, AUC, precision, recall and F1, and their means.

The 2D-VoCo paper (arXiv 2601.14593) reports mAP and recall beside the competition's score without a formula.
Here the classes are the 13 columns of the competition, each against the rest of its target.
"""

import pandas as pd
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from src.core.targets import GROUPS
from src.score.metric import align, normalise

MEASURES = ("average_precision", "auc", "precision", "recall", "f1")
"""What is measured of a class; all lie in 0..1 and higher is better."""


def class_metrics(labels: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """The measures of every class.

    Average precision is scikit-learn's (the sum of precisions weighted by the steps in recall, without
    interpolation), of patients ranked by the column's normalised probability; a constant prediction gets the
    class's share of patients. AUC is the area under the ROC curve of the same ranking. For precision, recall
    and F1 a patient is given the class of highest probability in
    each target (the first in the order of the columns where two are equal; in the targets of two classes,
    injury above 0.5). The precision of a class that is never given is 0.

    Args:
        labels: `patient_id` and the 13 columns, 0 or 1, a row a patient.
        predictions: the same columns as probabilities, in any order of rows.

    Returns:
        A row a class: `class, positives, predicted` (numbers of patients) and the measures, which are NaN
        where no patient or every patient has the class.

    Raises:
        UserError: as `metric.score`.
    """
    probabilities = normalise(align(predictions, labels.patient_id))
    rows = []
    for members in GROUPS.values():
        chosen = probabilities[list(members)].to_numpy().argmax(axis=1)
        for index, name in enumerate(members):
            truth, given = labels[name].to_numpy(), chosen == index
            row = {"class": name, "positives": int(truth.sum()), "predicted": int(given.sum())}
            if 0 < row["positives"] < len(truth):
                row["average_precision"] = float(average_precision_score(truth, probabilities[name]))
                row["auc"] = float(roc_auc_score(truth, probabilities[name]))
                row["precision"] = float(precision_score(truth, given, zero_division=0))
                row["recall"] = float(recall_score(truth, given))
                row["f1"] = float(f1_score(truth, given))
            rows.append(row)
    return pd.DataFrame(rows, columns=["class", "positives", "predicted", *MEASURES])


def class_means(table: pd.DataFrame, *, injuries_only: bool = False) -> dict[str, float]:
    """Plain means of the measures over the classes that have them, under `map, auc, precision, recall, f1`.

    Args:
        table: of `class_metrics`.
        injuries_only: leave the five healthy classes out, which are common and easy.

    Returns:
        NaN where no class has the measures.
    """
    healthy = table["class"].str.endswith("_healthy")
    means = table.loc[~healthy if injuries_only else slice(None), list(MEASURES)].mean()
    return means.rename({"average_precision": "map"}).to_dict()
