"""Agreement of predicted and true organs in whole volumes: Dice, Jaccard and surface distances in mm."""

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from src.core.targets import ORGANS

SCORES = ("dice", "jaccard", "hd95_mm", "asd_mm")
COLUMNS = ("organ", *SCORES, "case")
COUNTS = ("series", "missed", "invented")


def score_volumes(
    truth: np.ndarray,
    predicted: np.ndarray,
    spacing_mm: Sequence[float],
    organs: Iterable[str] = ORGANS,
) -> pd.DataFrame:
    """Compare two label maps of one series, organ by organ.

    Dice and Jaccard count voxels. `hd95_mm` is the 95 % Hausdorff distance: the 95th percentile of the
    distances from each surface to the other, and the larger of the two. `asd_mm` is the average symmetric
    surface distance: the mean over the distances in both directions. The surface of an organ is its voxels
    with a face towards the outside, which includes the border of the volume. Distances are between centres of
    voxels (MONAI, after https://github.com/deepmind/surface-distance).

    Args:
        truth: (Z, H, W) uint8, labels of `ORGANS`.
        predicted: (Z, H, W) uint8, of the same series.
        spacing_mm: spacing of the voxels along z, y and x.
        organs: names of `ORGANS`.

    Returns:
        One row per organ: organ, dice, jaccard, hd95_mm, asd_mm, case. The case is
        `scored` for an organ in both volumes;
        `missed` for one in the truth only, `invented` for one in the prediction only: Dice and Jaccard are
        then 0 and both distances the diagonal of the volume, which no prediction can exceed;
        `absent` for one in neither: all scores are NaN.

    Raises:
        ValueError: two shapes, not three axes, a spacing that is not three lengths, or an unknown organ.
    """
    if truth.shape != predicted.shape or truth.ndim != 3:
        raise ValueError(f"need two volumes of one shape, got {truth.shape} and {predicted.shape}")
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing must be three lengths in mm, got {spacing_mm}")
    organs = list(organs)
    unknown = [organ for organ in organs if organ not in ORGANS]
    if unknown:
        raise ValueError(f"unknown organ {unknown[0]!r}; there are {', '.join(ORGANS)}")
    rows = [(organ, *_score(truth == ORGANS[organ], predicted == ORGANS[organ], spacing)) for organ in organs]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean scores over series for each organ, then over the organs.

    Args:
        rows: rows of `score_volumes`, for any number of series.

    Returns:
        One row per organ, in the order of `rows`: organ, series (number with the organ in either volume),
        missed and invented (number of these cases), and the mean of each score over the series, NaN if there
        are none. The last row, `mean`, has the means over organs with a value, and the sums of counts.
    """
    counted = rows.assign(
        series=rows["case"] != "absent", missed=rows["case"] == "missed", invented=rows["case"] == "invented"
    )
    grouped = counted.groupby("organ", sort=False)
    counts = grouped[list(COUNTS)].sum()
    means = grouped[list(SCORES)].mean()  # skips the NaN of absent organs
    table = pd.concat([counts, means], axis=1).reset_index()
    last = {"organ": "mean", **counts.sum(), **means.mean()}
    return pd.concat([table, pd.DataFrame([last])], ignore_index=True)


def _score(truth: np.ndarray, predicted: np.ndarray, spacing: np.ndarray) -> tuple[float | str, ...]:
    """Dice, Jaccard, both distances and the case of one organ."""
    in_truth, in_prediction = bool(truth.any()), bool(predicted.any())
    if not in_truth and not in_prediction:
        return (*[float("nan")] * len(SCORES), "absent")
    if not (in_truth and in_prediction):
        diagonal = float(np.linalg.norm(spacing * truth.shape))
        return (0.0, 0.0, diagonal, diagonal, "missed" if in_truth else "invented")
    box = _box(truth | predicted)
    truth, predicted = truth[box], predicted[box]
    both = int(np.count_nonzero(truth & predicted))
    either = int(np.count_nonzero(truth | predicted))
    return (
        2 * both / (both + either),
        both / either,
        *surface_distances_mm(truth, predicted, spacing),
        "scored",
    )


def _box(organ: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box around the voxels of an organ."""
    axes = range(organ.ndim)
    filled = [np.flatnonzero(organ.any(axis=tuple(set(axes) - {axis}))) for axis in axes]
    return tuple(slice(indices[0], indices[-1] + 1) for indices in filled)


def surface_distances_mm(
    truth: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[float, float]:
    """Compute (hd95_mm, asd_mm) of one organ that is in both volumes, as defined in `score_volumes`.

    Cropping the volumes to the organ only affects the time.

    Args:
        truth: (Z, H, W) bool, with at least one voxel.
        predicted: (Z, H, W) bool, with at least one voxel.
        spacing_mm: spacing along z, y and x.
    """
    # imported here, as MONAI takes seconds to load
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    pair = [torch.from_numpy(np.ascontiguousarray(volume))[None, None] for volume in (predicted, truth)]
    common = {"include_background": True, "spacing": [float(length) for length in spacing_mm]}
    with warnings.catch_warnings():
        # MONAI passes an argument that it has deprecated itself
        warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
        hd95 = compute_hausdorff_distance(*pair, percentile=95, **common)
        asd = compute_average_surface_distance(*pair, symmetric=True, **common)
    return float(hd95), float(asd)
