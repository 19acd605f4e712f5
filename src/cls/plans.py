"""Which slices of a series make a stack. No torch: processes that decode choose slices by it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from src.cls.views import Box, StackView, choose_slices, neighbours_of


class StackPlan(NamedTuple):
    """Which slices of a series make a stack."""

    indices: np.ndarray
    """int64 (T,)"""
    filled: int
    """how many of them are slices; the rest is padding"""
    wanted: np.ndarray
    """int64 (U,) slices to be read, each once, rising"""
    places: np.ndarray
    """int64 (T * neighbours,) of each picture of the stack in `wanted`"""


def plan_stack(z_mm: np.ndarray, along: Box | None, view: StackView, offset: float) -> StackPlan:
    """Choose the slices of a stack.

    Args:
        z_mm: (slices,) positions, falling from head to feet.
        along: the region whose slices are taken; None takes all.
        offset: of the slices, 0..1.
    """
    first, stop = (along.first, along.stop) if along else (0, len(z_mm))
    indices, filled = choose_slices(z_mm, first, stop, view, offset)
    wanted, places = np.unique(neighbours_of(indices, z_mm, view), return_inverse=True)
    return StackPlan(indices, filled, wanted, places.ravel())


@dataclass(frozen=True)
class SlicesShown:
    """All slices that some stacks of whole series show."""

    stacks: tuple[tuple[StackView, float], ...]
    """views of the same selection, and the offsets of their slices"""

    def __call__(self, z_mm: np.ndarray) -> np.ndarray:
        """Indices int64, rising, from the positions (slices,) of a series."""
        selected = self.stacks[0][0].selection.choose(z_mm)
        plans = [plan_stack(z_mm[selected], None, view, offset) for view, offset in self.stacks]
        return selected[np.unique(np.concatenate([plan.wanted for plan in plans]))]
