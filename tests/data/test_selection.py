"""Choice of the slices of a series that are kept."""

import numpy as np
import pytest

from src.core.errors import UserError
from src.data.selection import SliceSelection, even_indices


def chosen(z_mm, **policy):
    return SliceSelection(**policy).choose(np.array(z_mm, dtype=float)).tolist()


def test_choose_takes_all_by_default():
    assert chosen([9, 6, 3, 0]) == [0, 1, 2, 3]
    assert chosen([9]) == [0]


def test_choose_takes_the_slice_nearest_to_each_multiple():
    assert chosen(np.arange(25, -1, -5), spacing_z_mm=9) == [0, 2, 4]
    assert chosen(np.arange(25, -1, -5), spacing_z_mm=10) == [0, 2, 4]
    assert chosen([20.0, 19.1, 18.2, 10.4, 9.6, 0.1], spacing_z_mm=5) == [0, 2, 3, 4]  # uneven


@pytest.mark.parametrize("spacing_z_mm", [0.1, 1, 4.9, 5])
def test_choose_repeats_no_slice(spacing_z_mm):
    assert chosen(np.arange(25, -1, -5), spacing_z_mm=spacing_z_mm) == [0, 1, 2, 3, 4, 5]


def test_choose_spreads_a_count_evenly():
    assert chosen(range(9, -1, -1), count=2) == [2, 7]
    assert chosen([2, 1, 0], count=8) == [0, 1, 2]
    assert chosen([5], spacing_z_mm=3) == [0]


@pytest.mark.parametrize(
    "policy",
    [{"spacing_z_mm": 0.0}, {"spacing_z_mm": float("nan")}, {"count": 0}, {"spacing_z_mm": 1, "count": 1}],
)
def test_slice_selection_refuses_contradictions(policy):
    with pytest.raises(UserError):
        SliceSelection(**policy)


def test_even_indices_are_the_middles_of_equal_bins():
    assert even_indices(10, 5).tolist() == [1, 3, 5, 7, 9]
    assert even_indices(96, 1).tolist() == [48]
    assert even_indices(7, 7).tolist() == list(range(7))
    assert even_indices(2, 6).tolist() == [0, 0, 0, 1, 1, 1]
    for n, count in ((317, 48), (41, 48), (1727, 64)):
        expected = [int((i + 0.5) * n / count) for i in range(count)]
        assert even_indices(n, count).tolist() == expected
