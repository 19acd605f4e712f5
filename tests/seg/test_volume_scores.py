"""Scores of predicted organs against values computed by hand."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy.ndimage import gaussian_filter

from src.core.targets import ORGANS
from src.seg.volume_scores import SCORES, score_volumes, summarise

ROOT = Path(__file__).resolve().parents[2]
SPACING = (5.0, 2.0, 3.0)
LIVER = ["liver"]


def volume(shape: tuple[int, int, int] = (12, 16, 20), **boxes: tuple[slice, slice, slice]) -> np.ndarray:
    """A label map with boxes; `left_kidney=...` is the left kidney."""
    labels = np.zeros(shape, dtype=np.uint8)
    for organ, box in boxes.items():
        labels[box] = ORGANS[organ.replace("_", " ")]
    return labels


def box(z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]) -> tuple[slice, slice, slice]:
    return slice(*z), slice(*y), slice(*x)


def one(table: pd.DataFrame, organ: str = "liver") -> dict:
    """The row of an organ."""
    return table.set_index("organ").loc[organ].to_dict()


def all_organs() -> np.ndarray:
    """Every organ somewhere, kidneys at mirrored places, the liver across the middle."""
    return volume(
        liver=box((1, 4), (2, 8), (6, 14)),
        spleen=box((1, 4), (9, 14), (15, 19)),
        left_kidney=box((5, 9), (9, 12), (16, 17)),
        right_kidney=box((5, 9), (9, 12), (3, 4)),
        bowel=box((9, 12), (2, 12), (5, 15)),
    )


def test_score_volumes_of_a_perfect_prediction():
    table = score_volumes(all_organs(), all_organs(), SPACING)
    assert table.columns.tolist() == ["organ", "dice", "jaccard", "hd95_mm", "asd_mm", "case"]
    assert table["organ"].tolist() == list(ORGANS)
    assert (table[["dice", "jaccard"]] == 1).all(axis=None)
    assert (table[["hd95_mm", "asd_mm"]] == 0).all(axis=None)
    assert (table["case"] == "scored").all()


@pytest.mark.parametrize(("axis", "distance"), [(0, 5), (1, 2), (2, 3)])
def test_score_volumes_uses_the_spacing_of_each_axis(axis, distance):
    limits = [(3, 9), (3, 9), (3, 9)]
    limits[axis] = (4, 5)
    truth = volume(liver=box(*limits))
    row = one(score_volumes(truth, np.roll(truth, 2, axis), SPACING, LIVER))
    assert row["hd95_mm"] == row["asd_mm"] == pytest.approx(2 * distance)


def test_score_volumes_hd95_is_the_larger_of_both_directions():
    truth = volume(liver=box((4, 5), (2, 12), (2, 12)))
    part = volume(liver=box((4, 5), (2, 12), (2, 7)))  # inside the truth, which extends 5 pixels further
    for pair in ((truth, part), (part, truth)):
        row = one(score_volumes(*pair, SPACING, LIVER))
        assert row["hd95_mm"] == pytest.approx(5 * 3)  # 10 of the truth's 100 voxels are so far
        assert row["asd_mm"] == pytest.approx(10 * (3 + 6 + 9 + 12 + 15) / 150)


def test_score_volumes_counts_the_border_of_the_volume_as_outside():
    truth = volume((3, 3, 3), liver=box((0, 3), (0, 3), (0, 3)))
    predicted = volume((3, 3, 3), liver=box((1, 2), (1, 2), (1, 2)))
    row = one(score_volumes(truth, predicted, (1.0, 1.0, 1.0), LIVER))
    # the truth's surface is its 26 outer voxels: 6, 12 and 8 of them 1, sqrt 2 and sqrt 3 from the middle
    assert row["asd_mm"] == pytest.approx((6 + 12 * 2**0.5 + 8 * 3**0.5 + 1) / 27)


def test_score_volumes_hd95_ignores_a_stray_voxel_and_asd_does_not():
    truth = volume(liver=box((4, 5), (2, 12), (2, 12)))  # 100 voxels
    predicted = truth.copy()
    predicted[4, 2, 19] = ORGANS["liver"]  # 8 pixels of 3 mm beside
    row = one(score_volumes(truth, predicted, SPACING, LIVER))
    assert row["hd95_mm"] == 0
    assert row["asd_mm"] == pytest.approx(8 * 3 / 201)
    assert row["dice"] == pytest.approx(200 / 201)


def test_score_volumes_of_missed_invented_and_absent_organs():
    shape, spacing = (4, 8, 6), (3.0, 0.5, 0.5)  # 12 x 4 x 3 mm, 13 from corner to corner
    truth = volume(shape, liver=box((1, 2), (1, 3), (1, 3)))
    predicted = volume(shape, bowel=box((1, 2), (1, 3), (1, 3)))
    table = score_volumes(truth, predicted, spacing)
    assert table["case"].tolist() == ["missed", "absent", "absent", "absent", "invented"]
    for organ in ("liver", "bowel"):
        row = one(table, organ)
        assert row["dice"] == row["jaccard"] == 0
        assert row["hd95_mm"] == row["asd_mm"] == pytest.approx(13)
    assert table.loc[1:3, list(SCORES)].isna().all(axis=None)


@pytest.mark.parametrize("place", ["inside", "border"])
@pytest.mark.parametrize("seed", range(4))
def test_score_volumes_equals_monai_on_the_whole_volume(seed, place):
    """score_volumes crops to the organ; also for an organ at the border of the volume."""
    noise = np.random.default_rng(seed).normal(size=(2, 16, 24, 28))
    noise[1] += noise[0]  # the two overlap in part
    blobs = np.stack([gaussian_filter(part, 2) for part in noise]) > 0.08
    if place == "inside":
        for axis in (1, 2, 3):
            np.moveaxis(blobs, axis, 0)[[0, 1, 2, -2, -1]] = False
    sides = [face.any() for axis in (1, 2, 3) for face in np.moveaxis(blobs, axis, 0)[[0, -1]]]
    assert all(sides) if place == "border" else not any(sides)
    truth, predicted = blobs.astype(np.uint8) * ORGANS["bowel"]
    row = one(score_volumes(truth, predicted, SPACING, ["bowel"]), "bowel")

    pair = [torch.from_numpy(blob)[None, None] for blob in blobs[::-1]]
    common = {"include_background": True, "spacing": list(SPACING)}
    with warnings.catch_warnings(action="ignore"):
        hd95 = compute_hausdorff_distance(*pair, percentile=95, **common).item()
        asd = compute_average_surface_distance(*pair, symmetric=True, **common).item()
    assert row["hd95_mm"] == pytest.approx(hd95, rel=1e-6) and hd95 > 2
    assert row["asd_mm"] == pytest.approx(asd, rel=1e-6) and 0 < asd < hd95
    both, sizes = (blobs[0] & blobs[1]).sum(), blobs.sum()
    assert row["dice"] == pytest.approx(2 * both / sizes) and 0.2 < row["dice"] < 0.95
    assert row["jaccard"] == pytest.approx(both / (sizes - both))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicted": volume((12, 16, 19))}, "volumes of one shape"),
        ({"truth": volume()[0], "predicted": volume()[0]}, "volumes of one shape"),
        ({"spacing_mm": (5.0, 2.0)}, "three lengths"),
        ({"spacing_mm": (np.nan, 2.0, 2.0)}, "three lengths"),
        ({"spacing_mm": (5.0, 0.0, 2.0)}, "three lengths"),
        ({"spacing_mm": (np.inf, 2.0, 2.0)}, "three lengths"),
        ({"organs": ["heart"]}, "unknown organ 'heart'"),
    ],
)
def test_score_volumes_refuses_bad_arguments(change, message):
    given = {"truth": volume(), "predicted": volume(), "spacing_mm": SPACING} | change
    with pytest.raises(ValueError, match=message):
        score_volumes(**given)


@pytest.mark.slow
def test_evaluate_loads_monai_late_and_prints_nothing():
    code = """
import sys, numpy as np, src.seg.evaluate
from src.seg.volume_scores import score_volumes
a = np.ones((3, 4, 4), np.uint8)
score_volumes(a, 0 * a, (1, 1, 1))
assert not {"torch", "monai"} & set(sys.modules)
assert score_volumes(a, a, (1, 1, 1)).dice[0] == 1
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def rows(*given: tuple[str, float, float, str]) -> pd.DataFrame:
    """A table of `score_volumes`, from organ, an overlap, a distance and the case."""
    table = [(organ, overlap, overlap / 2, far, far / 2, case) for organ, overlap, far, case in given]
    return pd.DataFrame(table, columns=["organ", *SCORES, "case"])


def test_summarise_averages_over_series_then_over_organs():
    nan = float("nan")
    table = summarise(
        rows(
            ("spleen", 0.9, 2.0, "scored"),
            ("liver", 0.8, 4.0, "scored"),
            ("bowel", nan, nan, "absent"),
            ("spleen", 0.0, 100.0, "missed"),
            ("liver", nan, nan, "absent"),
            ("bowel", nan, nan, "absent"),
            ("spleen", 0.0, 90.0, "invented"),
            ("liver", 0.6, 6.0, "scored"),
            ("bowel", nan, nan, "absent"),
        )
    )
    columns = ["organ", "series", "missed", "invented", *SCORES]
    expected = [
        ["spleen", 3, 1, 1, 0.3, 0.15, 64.0, 32.0],
        ["liver", 2, 0, 0, 0.7, 0.35, 5.0, 2.5],
        ["bowel", 0, 0, 0, nan, nan, nan, nan],
        ["mean", 5, 1, 1, 0.5, 0.25, 34.5, 17.25],  # over spleen and liver, not over five rows
    ]
    pd.testing.assert_frame_equal(table, pd.DataFrame(expected, columns=columns))
