"""Missing slices are told from scans of several spacings."""

import numpy as np
import pytest

from src.prepare.spacing import describe_gaps


def described(*parts, step_of=None):
    """Notes on a scan of (distance in mm, number of distances); `step_of`: numbers skipped per distance."""
    distances = [mm for mm, n in parts for _ in range(n)]
    numbers = np.cumsum([1, *((step_of or {}).get(mm, 1) for mm in distances)])
    return describe_gaps(-np.cumsum([0.0, *distances]), numbers.tolist())


@pytest.mark.parametrize(
    ("parts", "texts"),
    [
        ([(5, 30)], []),
        ([(5, 10), (4, 10)], []),
        ([(7, 13), (4, 14)], ["two spacings: 7 mm for 13 slices, then 4 mm"]),
        ([(1.25, 40), (7.5, 9)], ["two spacings: 1.25 mm for 40 slices, then 7.5 mm"]),
        ([(7, 8), (5.5, 1), (4, 20)], ["two spacings: 7 mm for 8 slices, then 4 mm"]),
        (
            [(8, 5), (2, 20), (8, 6)],
            ["three spacings: 8 mm for 5 slices, 2 mm for 20 slices, then 8 mm"],
        ),
        ([(5, 10), (10, 1), (5, 10), (15, 1), (5, 10)], ["gaps of missing slices: 2"]),
        ([(5, 10), (25, 3), (5, 10)], ["gaps of missing slices: 3"]),
        ([*[(1.5, 1), (3.5, 1)] * 12, (1.5, 1)], ["gaps of missing slices: 12"]),
        (
            [(7, 6), (14, 1), (7, 6), (4, 20)],
            ["two spacings: 7 mm for 13 slices, then 4 mm", "gaps of missing slices: 1"],
        ),
        (
            [(7, 6), (4, 8), (12, 1), (4, 12)],
            ["two spacings: 7 mm for 6 slices, then 4 mm", "gaps of missing slices: 1"],
        ),
    ],
)
def test_describe_gaps(parts, texts):
    assert described(*parts) == texts


def test_describe_gaps_counts_slices_that_the_numbers_skip():
    """Every second slice of a half is missing."""
    parts = [(10, 8), (5, 12)]
    assert described(*parts, step_of={10: 2}) == ["gaps of missing slices: 8"]
    assert described(*parts) == ["two spacings: 10 mm for 8 slices, then 5 mm"]


def test_describe_gaps_of_a_single_slice():
    assert describe_gaps(np.array([3.0]), [1]) == []
