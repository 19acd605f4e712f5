"""Placing accuracy: random crops of unseen volumes among the bases of their own and of other volumes.

Crops of one patient share pixels, so that random weights already place half of them correctly among their own
bases (*intra*). Among another patient's bases (*cross*) pixels do not help.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from src.core.log import progress
from src.core.runtime import sample_rng
from src.probe.estimates import FEW, Estimate, by_name, percentile_interval, ratio, resampled_counts
from src.probe.frozen import GRID, FrozenNet, HeldOut, cut, grid_starts
from src.voco.crops import overlap_labels
from src.voco.dataset import open_dataset
from src.voco.options import VocoOptions

SLICES = 8
"""Slices of a crop in the geometry that all methods share; a 3D network uses its training depth."""
RANDOM_CROPS = 8
"""Number of random crops per series and draw."""
MIN_CROPS = 400
"""Minimum number of random crops in total; small sets are drawn from several times."""

SampleCrops = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
"""(series, draw) -> crops uint8 (R + N, T, tile, tile, C), random crops first, and labels (R, N)."""


def standard_sampler(net: FrozenNet, held_out: HeldOut, seed: int) -> SampleCrops:
    """Sample crops of the 3 x 3 grid on whole slices of the middle half of a series."""
    slices = net.slices if net.is_volume else SLICES

    def sample(row: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
        return standard_crops(
            held_out, row, draw, tile=net.tile, slices=slices, random_crops=RANDOM_CROPS, seed=seed
        )

    return sample


def own_sampler(net: FrozenNet, held_out: HeldOut, seed: int) -> SampleCrops:
    """Sample crops as in the network's run, without changes of appearance and rotations.

    With several bases along the body, cross-patient labels are valid only if the scans cover the same
    region.
    """
    dataset = open_dataset(plain_geometry(net.run, str(held_out.dataset.folder), seed))
    rows = held_out.series.index  # among all series that are not doubtful, as in the index of the data set

    def sample(row: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
        crops = dataset[draw, int(rows[row])]
        return crops.tiles.numpy(), crops.label.numpy()

    return sample


def plain_geometry(options: VocoOptions, data: str, seed: int) -> VocoOptions:
    """Return the options of a run for the held-out set, without random changes of crops."""
    return replace(
        options,
        data=(data,),
        doubtful="skip",
        set_windows=(),
        repeat=(),
        random_crops=RANDOM_CROPS,
        crop_flip=0.0,
        crop_rotate90=0.0,
        crop_shift=0.0,
        appearance=0.0,
        jitter=0.0,
        cache=None,
        seed=seed,
    )


def middle_indices(n_slices: int, count: int) -> np.ndarray:
    """`count` slices spread evenly over the middle half of a series, at the same relative heights in each."""
    share = 0.25 + 0.5 * (np.arange(count) + 0.5) / count
    return (share * n_slices).astype(np.int64)


def standard_crops(
    held_out: HeldOut, row: int, draw: int, *, tile: int, slices: int, random_crops: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random crops and the 3 x 3 bases of one series, over slices of its middle half.

    Positions are drawn as fractions of the image, so that they do not depend on the tile size of a network.

    Args:
        row: row of `held_out.series`.
        draw: index of a repeated draw.

    Returns:
        uint8 (R + 9, slices, tile, tile, C), random crops first, and labels float32 (R, 9).
    """
    series = held_out.series.iloc[row]
    indices = middle_indices(int(series["slices"]), slices)
    images = held_out.read(series["patient_id"], series["series_id"], indices, GRID * tile)
    places = sample_rng(seed, draw, row).random((random_crops, 2))
    randoms = np.rint(places * (GRID - 1) * tile).astype(np.int64)
    bases = grid_starts(tile)
    return cut(images, np.concatenate([randoms, bases]), tile), overlap_labels(randoms, bases, (tile, tile))


class PlacedCrops(NamedTuple):
    """Embeddings of D draws from S series."""

    features: np.ndarray
    """float32 (D, S, R + N, width)"""
    projection: np.ndarray | None
    """float32 (D, S, R + N, projection); None of an encoder alone"""
    label: np.ndarray
    """float32 (D, S, R, N)"""


def embed_series(net: FrozenNet, sample: SampleCrops, series: int, name: str) -> PlacedCrops:
    """Embed every series' crops, in enough draws to reach `MIN_CROPS`."""
    draws = -(-MIN_CROPS // (series * RANDOM_CROPS))
    parts: dict[str, list[np.ndarray]] = {}
    for number in progress(range(draws * series), desc=f"placing, {name}"):
        crops, label = sample(number % series, number // series)
        for part, values in (net.embed(crops) | {"label": label}).items():
            parts.setdefault(part, []).append(values)
    stacked = {
        part: np.stack(values).reshape(draws, series, *values[0].shape) for part, values in parts.items()
    }
    return PlacedCrops(stacked["features"], stacked.get("projection"), stacked["label"])


def placing_estimates(placed: PlacedCrops, patient: np.ndarray, seed: int) -> dict[str, Estimate]:
    """Share of random crops whose most similar base is the one that they overlap most.

    If two bases share the largest overlap, either is correct. Similarity is the cosine that the loss uses;
    `features_centred` first subtracts the mean feature of all crops, because pooled features point mostly in
    the same direction.

    Args:
        patient: (S,) patient of each series; a crop is not placed among other series of the same patient.

    Returns:
        `<intra or cross>/<projection, features or features_centred>`; no cross for a single patient. By
        patient, cross counts the patient's crops among the bases of all others.
    """
    centred = placed.features - placed.features.mean(axis=(0, 1, 2))
    named = {"features": placed.features, "features_centred": centred}
    if placed.projection is not None:
        named["projection"] = placed.projection
    estimates = {}
    for name, embeddings in named.items():
        hits = np.stack(
            [hits_by_pair(*draw) for draw in zip(embeddings, placed.label, strict=True)]
        )  # (D, S, S)
        for kind, share in _shares(hits, placed.label.shape[2:], patient, seed).items():
            estimates[f"{kind}/{name}"] = share
    return dict(sorted(estimates.items()))


def hits_by_pair(embeddings: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Count how many of a series' R random crops are placed correctly among each series' bases.

    Args:
        embeddings: (S, R + N, D), random crops first.
        label: (S, R, N).

    Returns:
        float64 (S, S): crops of the row's series, bases of the column's series.
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


def _shares(hits: np.ndarray, sizes: tuple[int, int], patient: np.ndarray, seed: int) -> dict[str, Estimate]:
    """Pool `hits` (D, S, S) of `sizes` crops among bases by patient: intra, and cross if there is any."""
    crops, bases = sizes
    names, number = np.unique(patient, return_inverse=True)
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
            others = counts if kind == "cross" else 1  # patients of crops and of bases are both resampled
            hit, tried = by_patient.sum(0), trials.sum(0)  # (P, P)
            resampled = ratio(((counts @ hit) * others).sum(1), ((counts @ tried) * others).sum(1))
        low, high = percentile_interval(resampled)
        shares[kind] = Estimate(
            value=float(by_patient.sum() / trials.sum()),
            low=low,
            high=high,
            over="draws" if few else "patients",
            chance=1 / bases,
            trials=int(trials.sum()),
            patients=member.shape[1],
            by_patient=by_name(names, ratio(by_patient.sum((0, 2)), trials.sum((0, 2)))),
            resampled=tuple(resampled.tolist()),
        )
    return shares
