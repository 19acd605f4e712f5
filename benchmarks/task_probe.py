"""The competition's task by frozen features: linear models fitted to a share of the phantoms' labels."""

from collections.abc import Sequence
from pathlib import Path

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
from src.score.metric import loss_terms
from src.voco.canvas import resize_plane

SLICES, SIDE = 16, 96
"""Slices of a series and their side in pixels: what configs/cls/study_lite0.yaml shows."""
STRENGTH = 1e-3
"""Inverse strength of the penalty (`C`) on standardised features: there are more of them than patients."""


def measure_task(net: FrozenNet, work: Path, shares: Sequence[float], seed: int) -> dict[float, pd.Series]:
    """Fit on a share of the training patients and predict all test patients.

    Returns:
        By share: contributions to the competition's score (lower is better), one per test patient.
    """
    features = pd.concat([encode_series(net, open_prepared(work, name)) for name in ("train", "test")])
    results = {}
    for share in shares:
        folder = draw_labelled(work, share, seed)
        labels = read_labels(folder / "labels.csv")
        folds = pd.read_csv(folder / "folds.csv", dtype={"patient_id": str})
        is_test = labels.patient_id.isin(folds.patient_id[folds.fold == 0])
        truth = labels[is_test].reset_index(drop=True)
        results[share] = score_parts(truth, predict(features, labels[~is_test], truth.patient_id))
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

    Labels weigh as in the metric. A class without a labelled patient gets the probability 0.
    """
    known = features.index.get_level_values("patient_id")
    train, test = features[known.isin(labels.patient_id)], features[known.isin(patients)]
    scale = StandardScaler().fit(train)
    rows = labels.set_index("patient_id").loc[train.index.get_level_values("patient_id")]
    found = {}
    for columns in TARGETS.values():
        classes = rows[list(columns)].to_numpy().argmax(axis=1)
        weights = np.array([CLASS_WEIGHTS[name] for name in columns])[classes]
        model = LogisticRegression(C=STRENGTH, max_iter=1000)
        model.fit(scale.transform(train), classes, sample_weight=weights)
        found |= dict.fromkeys(columns, 0.0)
        known_columns = [columns[label] for label in model.classes_]
        found |= dict(zip(known_columns, model.predict_proba(scale.transform(test)).T, strict=True))
    return pd.DataFrame(found, index=test.index).groupby("patient_id").mean().loc[patients].reset_index()


def score_parts(truth: pd.DataFrame, predictions: pd.DataFrame) -> pd.Series:
    """Contribution of each patient to the score, which is their mean."""
    terms = loss_terms(truth, predictions)
    shares = terms.weights / terms.weights.mean(axis=0)
    return pd.Series((shares * terms.losses).mean(axis=1), index=truth.patient_id)
