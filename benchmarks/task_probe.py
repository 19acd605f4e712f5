"""The competition's task by frozen features: linear models fitted to a share of the phantoms' labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from study_sets import draw_labelled, open_prepared

from src.core.log import progress
from src.core.targets import CLASS_WEIGHTS, TARGETS
from src.data.labels import read_labels
from src.data.prepared import PreparedDataset
from src.data.selection import even_indices
from src.probe.frozen import FrozenNet
from src.score.classes import class_means, class_metrics
from src.score.metric import loss_terms
from src.voco.canvas import resize_plane

SLICES, SIDE = 16, 96
"""Slices of a series and their side in pixels: what configs/cls/study_lite0.yaml shows."""
STRENGTH = 1e-5
"""Inverse strength of the penalty (`C`) on standardised features: of 1e-3 to 1e-7, where the score no longer
improved, with ImageNet features and among training patients."""


def predict_task(
    net: FrozenNet, work: Path, shares: Sequence[float], seed: int
) -> dict[float, tuple[pd.DataFrame, pd.DataFrame]]:
    """Fit on a share of the training patients and predict all test patients.

    Returns:
        By share: labels and predictions of the test patients.
    """
    features = pd.concat([encode_series(net, open_prepared(work, name)) for name in ("train", "test")])
    results = {}
    for share in shares:
        folder = draw_labelled(work, share, seed)
        labels = read_labels(folder / "labels.csv")
        folds = pd.read_csv(folder / "folds.csv", dtype={"patient_id": str})
        is_test = labels.patient_id.isin(folds.patient_id[folds.fold == 0])
        truth = labels[is_test].reset_index(drop=True)
        results[share] = truth, predict(features, labels[~is_test], truth.patient_id)
    return results


def encode_series(net: FrozenNet, dataset: PreparedDataset) -> pd.DataFrame:
    """Mean and maximum over the slices of each series, one row per series, by patient."""
    channels, rows = list(dataset.channels(net.windows)), {}
    for number in progress(range(len(dataset.series)), desc="features"):
        row = dataset.series.iloc[number]
        key = (row.patient_id, row.series_id)
        indices = even_indices(dataset.slice_counts[key], SLICES)
        images = dataset.read_slices(*key, indices)[..., channels]
        crops = np.stack([resize_plane(image, SIDE) for image in images])[:, None]  # (T, 1, side, side, C)
        slices = net.embed(crops)["features"]
        rows[key] = np.concatenate([slices.mean(axis=0), slices.max(axis=0)])
    index = pd.MultiIndex.from_tuples(rows, names=["patient_id", "series_id"])
    return pd.DataFrame(np.stack(list(rows.values())), index=index)


def predict(features: pd.DataFrame, labels: pd.DataFrame, patients: pd.Series) -> pd.DataFrame:
    """Probabilities of every column for `patients`, the mean over their series.

    Labels weigh as in the metric. Probabilities are smoothed as if one more patient were spread over all
    classes: few labels may lack a class.
    """
    known = features.index.get_level_values("patient_id")
    train, test = features[known.isin(labels.patient_id)], features[known.isin(patients)]
    scale = StandardScaler().fit(train)
    rows = labels.set_index("patient_id").loc[train.index.get_level_values("patient_id")]
    found = {}
    for columns in TARGETS.values():
        classes = rows[list(columns)].to_numpy().argmax(axis=1)
        shares = np.zeros((len(test), len(columns)))
        if (classes == classes[0]).all():
            shares[:, classes[0]] = 1
        else:
            weights = np.array([CLASS_WEIGHTS[name] for name in columns])[classes]
            model = LogisticRegression(C=STRENGTH, max_iter=1000)
            model.fit(scale.transform(train), classes, sample_weight=weights)
            shares[:, model.classes_] = model.predict_proba(scale.transform(test))
        shares = (len(labels) * shares + 1 / len(columns)) / (len(labels) + 1)
        found |= dict(zip(columns, shares.T, strict=True))
    return pd.DataFrame(found, index=test.index).groupby("patient_id").mean().loc[patients].reset_index()


def task_figures(truth: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The competition's score (lower is better) with each patient's contribution, whose mean it is; and the
    mean average precision of the injuries, which does not depend on calibration."""
    terms = loss_terms(truth, predictions)
    shares = terms.weights / terms.weights.mean(axis=0)
    parts = pd.Series((shares * terms.losses).mean(axis=1), index=truth.patient_id)
    ranked = class_means(class_metrics(truth, predictions), injuries_only=True)
    return {
        "score": {"value": float(parts.mean()), "by_patient": parts.round(4).to_dict()},
        "map": {"value": ranked["map"]},
    }
