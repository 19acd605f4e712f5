"""Which slices of a series are kept."""

import numpy as np
import pytest

from src.core.errors import UserError
from src.data.selection import SliceSelection


def chosen(z_mm, **policy):
    return SliceSelection(**policy).choose(np.array(z_mm, dtype=float)).tolist()


def test_all_by_default():
    assert chosen([9, 6, 3, 0]) == [0, 1, 2, 3]
    assert chosen([9]) == [0]


def test_the_slice_nearest_to_each_multiple_of_the_spacing():
    assert chosen(np.arange(25, -1, -5), spacing_z_mm=9) == [0, 2, 4]
    assert chosen(np.arange(25, -1, -5), spacing_z_mm=10) == [0, 2, 4]
    assert chosen([20.0, 19.1, 18.2, 10.4, 9.6, 0.1], spacing_z_mm=5) == [0, 2, 3, 4]  # uneven


@pytest.mark.parametrize("spacing_z_mm", [0.1, 1, 4.9, 5])
def test_no_slice_is_repeated_where_they_are_further_apart(spacing_z_mm):
    assert chosen(np.arange(25, -1, -5), spacing_z_mm=spacing_z_mm) == [0, 1, 2, 3, 4, 5]


def test_a_count_is_spread_evenly_and_never_repeats():
    assert chosen(range(9, -1, -1), count=2) == [2, 7]
    assert chosen([2, 1, 0], count=8) == [0, 1, 2]
    assert chosen([5], spacing_z_mm=3) == [0]


@pytest.mark.parametrize(
    "policy",
    [{"spacing_z_mm": 0.0}, {"spacing_z_mm": float("nan")}, {"count": 0}, {"spacing_z_mm": 1, "count": 1}],
)
def test_a_policy_that_makes_no_sense_is_refused(policy):
    with pytest.raises(UserError):
        SliceSelection(**policy)
