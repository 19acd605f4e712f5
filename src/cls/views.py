"""The input of the classifier: which slices of a series, which part of them, and which channels.

Imports no torch: processes that decode series choose slices with it.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from src.data.selection import SliceSelection

ORGAN_GROUPS = MappingProxyType(
    {
        "liver": ("liver",),
        "spleen": ("spleen",),
        "kidneys": ("left kidney", "right kidney"),
        "bowel": ("bowel",),
    }
)
"""Organs as the targets name them. Both kidneys are one group, so that a flip exchanges no labels."""

REGIONS = ("body", "organs", *ORGAN_GROUPS)
"""The whole image, all organs together, or one organ."""

TARGET_ORGANS = MappingProxyType(
    {"bowel": "bowel", "kidney": "kidneys", "liver": "liver", "spleen": "spleen"}
)
"""Of `ORGAN_GROUPS`, the organ of each target; extravasation has none."""

MASK_CHANNELS = MappingProxyType({"none": 0, "any": 1, "each": len(ORGAN_GROUPS)})
"""Channels that show organ masks: none, one for all organs, or one for each of `ORGAN_GROUPS`."""


@dataclass(frozen=True)
class Box:
    """Slices and pixels of a region in a series, the ends exclusive."""

    first: int
    stop: int
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class StackView:
    """How stacks are cut out of a series; saved with a model."""

    windows: tuple[str, ...]
    """CT windows, each a channel"""
    size: int
    """side of the prepared slices in pixels"""
    crop: int
    """side of the network's input in pixels"""
    slices: int
    """T, slices of a stack"""
    spacing_mm: float = 0.0
    """distance of the slices; 0 spreads them evenly over the z range"""
    z_range: str = "body"
    """one of `REGIONS`: the slices of this region alone"""
    in_plane: str = "body"
    """one of `REGIONS`: body is a crop of `crop` pixels, another region is cut out and resized to it"""
    neighbours: int = 1
    """adjacent slices as channels, the slice itself in the middle"""
    neighbour_mm: float = 0.0
    """their distance; 0 takes the slices next to it"""
    masks: str = "none"
    """one of `MASK_CHANNELS`"""
    masks_from: str = "none"
    """true or predicted: the masks of training; none where it needed none"""
    selected_mm: float = 0.0
    """distance of the prepared slices; 0 where they were not chosen by distance"""
    selected_count: int = 0
    """number of prepared slices of each series; 0 where they were not chosen by number"""

    @property
    def selection(self) -> SliceSelection:
        """The slices of a series that were prepared, from which stacks are chosen."""
        return SliceSelection(self.selected_mm or None, self.selected_count or None)

    @property
    def mask_channels(self) -> int:
        return MASK_CHANNELS[self.masks]

    @property
    def channels(self) -> int:
        """C: windows of each neighbour, then masks."""
        return self.neighbours * len(self.windows) + self.mask_channels

    @property
    def needs_masks(self) -> bool:
        """Whether a stack cannot be cut out of the images alone."""
        return self.mask_channels > 0 or {self.z_range, self.in_plane} != {"body"}

    @property
    def regions(self) -> tuple[str, ...]:
        """Regions that masks must show; a series without one of them is used whole."""
        return tuple({self.z_range, self.in_plane} - {"body"})

    @property
    def is_padded(self) -> bool:
        """Whether a series may have fewer slices than a stack."""
        return self.spacing_mm > 0


class StackPlan(NamedTuple):
    """Which slices of a series make a stack."""

    indices: np.ndarray
    """int64 (T,)"""
    filled: int
    """number of slices; the rest of `indices` is padding"""
    wanted: np.ndarray
    """int64 (U,) slices to be read, each once, rising"""
    places: np.ndarray
    """int64 (T * neighbours,) place in `wanted` of each image of the stack"""


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
class RequiredSlices:
    """All slices that are needed to cut some stacks out of a whole series."""

    stacks: tuple[tuple[StackView, float], ...]
    """views of the same selection, and the offsets of their slices"""

    def __call__(self, z_mm: np.ndarray) -> np.ndarray:
        """Indices int64, rising, from the positions (slices,) of a series."""
        selected = self.stacks[0][0].selection.choose(z_mm)
        plans = [plan_stack(z_mm[selected], None, view, offset) for view, offset in self.stacks]
        return selected[np.unique(np.concatenate([plan.wanted for plan in plans]))]


def choose_slices(
    z_mm: np.ndarray, first: int, stop: int, view: StackView, offset: float
) -> tuple[np.ndarray, int]:
    """The slices of a stack.

    Args:
        z_mm: (slices,) positions, falling from head to feet.
        first, stop: the z range, as indices.
        view: how many, and how far apart.
        offset: 0..1. Evenly spread slices move by it within their bins; slices at a distance move by it
            through the z range if that is longer than the stack, else by one distance around its middle. 0.5
            is the middle.

    Returns:
        Indices int64 (T,), and the number of slices among them: the rest is padding and repeats the last one.
    """
    if not view.spacing_mm:
        places = np.floor((np.arange(view.slices) + offset) * (stop - first) / view.slices).astype(np.int64)
        return first + np.minimum(places, stop - first - 1), view.slices
    inside = -np.asarray(z_mm[first:stop], dtype=np.float64)
    inside -= inside[0]  # mm below the first slice
    length, extent = inside[-1], (view.slices - 1) * view.spacing_mm
    if length > extent:
        start = offset * (length - extent)
    else:
        start = (length - extent) / 2 + (offset - 0.5) * view.spacing_mm
    wanted = start + view.spacing_mm * np.arange(view.slices)
    half = view.spacing_mm / 2
    wanted = wanted[(wanted >= -half) & (wanted <= length + half)]
    places = nearest(inside, wanted if len(wanted) else np.array([length / 2]))
    filled = np.concatenate([places, np.full(view.slices - len(places), places[-1])])
    return first + filled, len(places)


def neighbours_of(indices: np.ndarray, z_mm: np.ndarray, view: StackView) -> np.ndarray:
    """(T,) slices -> (T, neighbours), the slice itself in the middle; beyond an end, the last one repeats."""
    steps = np.arange(view.neighbours) - view.neighbours // 2
    if not view.neighbour_mm:
        return np.clip(indices[:, None] + steps, 0, len(z_mm) - 1)
    depth = -np.asarray(z_mm, dtype=np.float64)
    found = nearest(depth, (depth[indices][:, None] + steps * view.neighbour_mm).ravel())
    return found.reshape(len(indices), view.neighbours)


def nearest(rising: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of the nearest of some rising values for each wanted one; of two equally near, the lower."""
    right = np.clip(np.searchsorted(rising, wanted), 1, max(1, len(rising) - 1))
    if len(rising) == 1:
        return np.zeros(len(wanted), dtype=np.int64)
    left = right - 1
    return np.where(wanted - rising[left] <= rising[right] - wanted, left, right).astype(np.int64)


def square_around(box: Box, size: int, margin: float) -> tuple[int, int, int]:
    """Left, top and side of the square around a box with a margin on each side, inside the image.

    Args:
        margin: share of the longer side of the box.
    """
    side = max(box.right - box.left, box.bottom - box.top)
    side = min(size, max(1, round(side * (1 + 2 * margin))))
    left, top = (
        int(np.clip(round((low + high - side) / 2), 0, size - side))
        for low, high in ((box.left, box.right), (box.top, box.bottom))
    )
    return left, top, side
