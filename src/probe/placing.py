"""Is a crop placed right? Random crops of volumes never seen, among the bases of their own and of others.

Crops of one patient share pixels, so that random weights already place half of them right among their own
bases (*intra*). Among another patient's bases (*cross*) pixels do not help.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from src.core.log import progress
from src.probe.estimates import FEW, Figure, percentile_interval, ratio, resampled_counts
from src.probe.frozen import FrozenNet

RANDOM_CROPS = 8
"""Random crops of a series in one draw."""
LEAST_CROPS = 400
"""Random crops in all; a set of few series is drawn from several times."""

SampleCrops = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
"""(series, draw) -> crops uint8 (R + N, T, tile, tile, C), random crops first, and labels (R, N)."""


class PlacedCrops(NamedTuple):
    """Embeddings of D draws from S series."""

    features: np.ndarray
    """float32 (D, S, R + N, width)"""
    projection: np.ndarray
    """float32 (D, S, R + N, projection)"""
    label: np.ndarray
    """float32 (D, S, R, N)"""


def embed_series(net: FrozenNet, sample: SampleCrops, series: int, name: str) -> PlacedCrops:
    """Embed every series' crops, in as many draws as make `LEAST_CROPS`."""
    draws = -(-LEAST_CROPS // (series * RANDOM_CROPS))
    features, projections, labels = [], [], []
    for number in progress(range(draws * series), desc=f"placing, {name}"):
        crops, label = sample(number % series, number // series)
        embedded = net.embed(crops)
        features.append(embedded["features"])
        projections.append(embedded["projection"])
        labels.append(label)
    return PlacedCrops(
        *(np.stack(part).reshape(draws, series, *part[0].shape) for part in (features, projections, labels))
    )


def placing_figures(placed: PlacedCrops, patient: np.ndarray, seed: int) -> dict[str, Figure]:
    """Share of random crops whose most similar base is the one that they overlap most.

    Where two bases share the largest overlap, either is right. Similarity is the plain cosine that the loss
    uses; `features_centred` subtracts the mean feature of all crops first, since pooled features point mostly
    the same way.

    Args:
        patient: (S,) whose series each is; a crop is never placed among another series of its own patient.

    Returns:
        `<intra or cross>/<projection, features or features_centred>`; cross is absent with a single patient.
    """
    centred = placed.features - placed.features.mean(axis=(0, 1, 2))
    figures = {}
    for name, embeddings in (
        ("projection", placed.projection),
        ("features", placed.features),
        ("features_centred", centred),
    ):
        hits = np.stack(
            [hits_by_pair(*draw) for draw in zip(embeddings, placed.label, strict=True)]
        )  # (D, S, S)
        for kind, figure in _shares(hits, placed.label.shape[2], patient, seed).items():
            figures[f"{kind}/{name}"] = Figure(**figure, chance=1 / placed.label.shape[3])
    return dict(sorted(figures.items()))


def hits_by_pair(embeddings: np.ndarray, label: np.ndarray) -> np.ndarray:
    """How many of a series' R random crops are placed right among each series' bases.

    Args:
        embeddings: (S, R + N, D), random crops first.
        label: (S, R, N).

    Returns:
        float64 (S, S): row, whose crops; column, whose bases.
    """
    crops, bases = label.shape[1:]
    lengths = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    directions = embeddings / np.maximum(lengths, 1e-12)
    is_right = label == label.max(axis=-1, keepdims=True)  # (S, R, N)
    targets = directions[:, crops:].reshape(-1, directions.shape[-1])  # (S * N, D)
    hits = np.empty((len(label), len(label)))
    for number, own in enumerate(directions[:, :crops]):
        placed = (own @ targets.T).reshape(crops, -1, bases).argmax(axis=-1)  # (R, S)
        hits[number] = np.take_along_axis(is_right[number], placed, axis=1).sum(axis=0)
    return hits


def _shares(hits: np.ndarray, crops: int, patient: np.ndarray, seed: int) -> dict[str, dict]:
    """`hits` (D, S, S) of `crops` trials each, pooled by patient: the figures' fields, chance left out."""
    _, number = np.unique(patient, return_inverse=True)
    member = np.eye(number.max() + 1)[number]  # (S, P)
    same_patient = number[:, None] == number[None, :]
    shares = {}
    for kind, pairs in (("intra", np.eye(len(patient), dtype=bool)), ("cross", ~same_patient)):
        by_patient = member.T @ (hits * pairs) @ member  # (D, P, P)
        trials = np.broadcast_to(member.T @ (crops * pairs) @ member, by_patient.shape)
        if not trials.any():
            continue
        few = member.shape[1] < FEW
        if few:
            counts = resampled_counts(len(hits), seed)
            resampled = ratio(counts @ by_patient.sum((1, 2)), counts @ trials.sum((1, 2)))
        else:
            counts = resampled_counts(member.shape[1], seed)
            bases = counts if kind == "cross" else 1  # both whose crops and whose bases were drawn
            hit, tried = by_patient.sum(0), trials.sum(0)  # (P, P)
            resampled = ratio(((counts @ hit) * bases).sum(1), ((counts @ tried) * bases).sum(1))
        low, high = percentile_interval(resampled)
        shares[kind] = {
            "value": float(by_patient.sum() / trials.sum()),
            "low": low,
            "high": high,
            "over": "draws" if few else "patients",
            "trials": int(trials.sum()),
            "patients": member.shape[1],
        }
    return shares
