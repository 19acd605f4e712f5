"""Views: slices of a stack, their neighbours, and the square around a region."""

import numpy as np
import pytest

from src.cls.views import Box, StackView, choose_slices, square_around
from src.data.selection import even_indices


def view(**changes) -> StackView:
    return StackView(**{"windows": ("soft",), "size": 64, "crop": 48, "slices": 5} | changes)


def positions(count: int, spacing: float = 5.0) -> np.ndarray:
    return 100 - spacing * np.arange(count)


@pytest.mark.parametrize("count", [3, 5, 17, 96])
def test_choose_slices_takes_the_middles_of_equal_bins(count):
    indices, filled = choose_slices(positions(count), 0, count, view(), 0.5)
    assert indices.tolist() == even_indices(count, 5).tolist() and filled == 5


def test_choose_slices_moves_slices_within_bins_by_the_offset():
    early, late = (choose_slices(positions(50), 0, 50, view(), offset)[0] for offset in (0.0, 0.99))
    assert early.tolist() == [0, 10, 20, 30, 40] and late.tolist() == [9, 19, 29, 39, 49]


def test_choose_slices_stays_in_the_z_range():
    for offset in (0.0, 0.5, 0.999):
        indices, _ = choose_slices(positions(50), 20, 27, view(), offset)
        assert indices.min() >= 20 and indices.max() < 27


def test_choose_slices_keeps_a_distance_in_mm():
    for spacing in (1.0, 2.5):
        z_mm = positions(200, spacing)
        indices, filled = choose_slices(z_mm, 0, 200, view(spacing_mm=5.0), 0.5)
        assert filled == 5 and np.diff(z_mm[indices]) == pytest.approx(-5.0)
        assert z_mm[indices].mean() == pytest.approx(z_mm.mean(), abs=spacing)


def test_choose_slices_moves_a_stack_through_a_long_range():
    first, _ = choose_slices(positions(100), 10, 90, view(spacing_mm=5.0), 0.0)
    last, _ = choose_slices(positions(100), 10, 90, view(spacing_mm=5.0), 1.0)
    assert first.tolist() == [10, 11, 12, 13, 14] and last.tolist() == [85, 86, 87, 88, 89]


def test_choose_slices_pads_a_short_range_behind():
    indices, filled = choose_slices(positions(40), 10, 13, view(spacing_mm=5.0), 0.5)
    assert filled == 3 and indices.tolist() == [10, 11, 12, 12, 12]


def test_choose_slices_accepts_one_slice():
    for spacing in (0.0, 5.0):
        indices, filled = choose_slices(positions(1), 0, 1, view(spacing_mm=spacing), 0.5)
        assert set(indices) == {0} and filled >= 1


def test_square_around_holds_the_box_and_stays_in_the_image():
    box = Box(0, 1, left=10, top=20, right=30, bottom=25)
    left, top, side = square_around(box, 64, margin=0.1)
    assert side == 24 and left <= 10 and left + side >= 30 and top <= 20 and top + side >= 25
    corner = square_around(Box(0, 1, 50, 50, 64, 64), 64, margin=0.5)
    assert corner == (36, 36, 28)
    assert square_around(Box(0, 1, 0, 0, 64, 64), 64, margin=0.5) == (0, 0, 64)


def test_view_counts_channels_and_knows_its_needs():
    assert view().channels == 1 and not view().needs_masks and not view().is_padded
    rich = view(windows=("soft", "wide"), neighbours=3, masks="each", spacing_mm=2.0)
    assert rich.channels == 10 and rich.needs_masks and rich.is_padded
    assert view(z_range="liver").needs_masks and view(in_plane="organs").needs_masks
