"""Choice of the slices of a series that are kept."""

import numpy as np
import pytest

from src.core.errors import UserError
from src.data.selection import Neighbours, SliceSelection, even_indices, nearest

EVEN = range(25, -1, -5)


@pytest.mark.parametrize(
    ("z_mm", "policy", "expected"),
    [
        ([9, 6, 3, 0], {}, [0, 1, 2, 3]),
        (EVEN, {"spacing_z_mm": 9}, [0, 2, 4]),
        (EVEN, {"spacing_z_mm": 10}, [0, 2, 4]),
        (EVEN, {"spacing_z_mm": 4.9}, [0, 1, 2, 3, 4, 5]),
        (EVEN, {"spacing_z_mm": 0.1}, [0, 1, 2, 3, 4, 5]),  # no slice twice
        ([20.0, 19.1, 18.2, 10.4, 9.6, 0.1], {"spacing_z_mm": 5}, [0, 2, 3, 4]),
        ([5], {"spacing_z_mm": 3}, [0]),
        (range(9, -1, -1), {"count": 2}, [2, 7]),
        ([2, 1, 0], {"count": 8}, [0, 1, 2]),
    ],
)
def test_choose(z_mm, policy, expected):
    assert SliceSelection(**policy).choose(np.array(z_mm, dtype=float)).tolist() == expected


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


def test_neighbours_are_the_next_slices_or_those_at_a_distance():
    z_mm, indices = -2.0 * np.arange(20), np.array([0, 10, 19])
    adjacent = Neighbours(3).find(indices, 20, lambda: 1 / 0)  # positions are not read
    assert adjacent.tolist() == [[0, 0, 1], [9, 10, 11], [18, 19, 19]]
    far = Neighbours(3, 6.0).find(indices, 20, lambda: z_mm)
    assert far.tolist() == [[0, 0, 3], [7, 10, 13], [16, 19, 19]]
    grid = indices.reshape(1, 3)
    assert Neighbours(3, 6.0).find(grid, 20, lambda: z_mm).tolist() == [far.tolist()]
    assert Neighbours(3, 6.0).find(np.array([0]), 1, lambda: z_mm[:1]).tolist() == [[0, 0, 0]]


def test_nearest_takes_the_lower_of_two():
    rising = np.array([0.0, 2.0, 4.0])
    assert nearest(rising, np.array([-5, 0.9, 1.0, 1.1, 9])).tolist() == [0, 0, 0, 1, 2]
