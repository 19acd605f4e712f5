"""Input of the classifier: which slices of a series, which region of them, and which channels.

Imports no torch, because processes that decode series use it to choose slices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from src.data.selection import Neighbours, SliceSelection, nearest

ORGAN_GROUPS = MappingProxyType(
    {
        "liver": ("liver",),
        "spleen": ("spleen",),
        "kidneys": ("left kidney", "right kidney"),
        "bowel": ("bowel",),
    }
)
"""Organ groups as in the targets. Both kidneys are one group, so that a flip does not exchange labels."""

EACH_KIDNEY = "each_kidney"
"""Region of two boxes: half of a stack's slices show one kidney, half the other, each in its own square."""

REGIONS = ("body", "organs", *ORGAN_GROUPS, EACH_KIDNEY)
"""Regions: the whole image, all organs together, one organ, or one kidney after the other."""

TARGET_ORGANS = MappingProxyType(
    {"bowel": "bowel", "kidney": "kidneys", "liver": "liver", "spleen": "spleen"}
)
"""Organ group of each target, from `ORGAN_GROUPS`; extravasation has none."""

MASK_CHANNELS = MappingProxyType({"none": 0, "any": 1, "each": len(ORGAN_GROUPS)})
"""Number of organ mask channels: none, one for all organs, or one for each of `ORGAN_GROUPS`."""


@dataclass(frozen=True)
class Box:
    """Slices and pixels of a region, or of a part of it, in a series; the ends are exclusive."""

    first: int
    stop: int
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class StackView:
    """Settings for extracting stacks from a series; saved with a model."""

    windows: tuple[str, ...]
    """CT windows, one channel each"""
    size: int
    """side of the prepared slices in pixels"""
    crop: int
    """side of the network's input in pixels"""
    slices: int
    """T, slices of a stack"""
    spacing_mm: float = 0.0
    """distance between slices; 0 spreads them evenly over the z range"""
    z_range: str = "body"
    """one of `REGIONS`, whose slices are used"""
    in_plane: str = "body"
    """one of `REGIONS`: body is a crop of `crop` pixels, other regions are cropped and resized to it"""
    neighbours: int = 1
    """number of adjacent slices as channels, centred on the slice"""
    neighbour_mm: float = 0.0
    """distance between neighbours; 0 takes adjacent slices"""
    masks: str = "none"
    """one of `MASK_CHANNELS`"""
    masks_from: str = "none"
    """true or predicted: kind of the training masks; none if training used none"""
    selected_mm: float = 0.0
    """distance between prepared slices; 0 if they were not selected by distance"""
    selected_count: int = 0
    """number of prepared slices per series; 0 if they were not selected by number"""

    @property
    def selection(self) -> SliceSelection:
        """Selection of slices in preparation, from which stacks are chosen."""
        return SliceSelection(self.selected_mm or None, self.selected_count or None)

    @property
    def mask_channels(self) -> int:
        return MASK_CHANNELS[self.masks]

    @property
    def channels(self) -> int:
        """C, number of channels: windows of each neighbour, then masks."""
        return self.neighbours * len(self.windows) + self.mask_channels

    @property
    def needs_masks(self) -> bool:
        """Whether masks are needed to extract a stack."""
        return self.mask_channels > 0 or {self.z_range, self.in_plane} != {"body"}

    @property
    def regions(self) -> tuple[str, ...]:
        """Regions that masks must contain; a series without one of them is used whole."""
        return tuple(sorted({self.z_range, self.in_plane} - {"body"}))

    @property
    def is_padded(self) -> bool:
        """Whether a series may have fewer slices than a stack."""
        return self.spacing_mm > 0


class StackPlan(NamedTuple):
    """Slices of a series that form a stack."""

    indices: np.ndarray
    """int64 (T,)"""
    filled: int
    """number of slices; the rest of `indices` is padding"""
    wanted: np.ndarray
    """int64 (U,) slices to read, in each part unique and increasing"""
    places: np.ndarray
    """int64 (T * neighbours,) index into `wanted` of each image of the stack"""
    parts: tuple[int, ...]
    """number of `wanted` slices of each box of the region, which follow each other; one part without boxes"""

    @property
    def shown(self) -> np.ndarray:
        """int64 (T, neighbours): slices that each slice of the stack shows as channels."""
        return self.wanted[self.places].reshape(len(self.indices), -1)


def plan_stack(z_mm: np.ndarray, along: Sequence[Box], view: StackView, offset: float) -> StackPlan:
    """Choose the slices of a stack.

    Args:
        z_mm: (slices,) positions, decreasing from head to feet.
        along: boxes of the region whose slices are used, each for an equal part of the stack; none: all
            slices of the series.
        offset: offset of the slices, 0..1.
    """
    ranges = [(box.first, box.stop) for box in along] or [(0, len(z_mm))]
    counts = share_slices(view.slices, len(ranges))
    plans = [
        _plan_part(z_mm, first, stop, replace(view, slices=count), offset)
        for (first, stop), count in zip(ranges, counts, strict=True)
    ]
    return plans[0] if len(plans) == 1 else _join_plans(plans)


def share_slices(slices: int, parts: int) -> list[int]:
    """Number of a stack's slices for each of its parts, as equal as possible."""
    return [len(part) for part in np.array_split(np.arange(slices), parts)]


def _plan_part(z_mm: np.ndarray, first: int, stop: int, view: StackView, offset: float) -> StackPlan:
    indices, filled = choose_slices(z_mm, first, stop, view, offset)
    shown = Neighbours(view.neighbours, view.neighbour_mm).find(indices, len(z_mm), lambda: z_mm)
    wanted, places = np.unique(shown, return_inverse=True)
    return StackPlan(indices, filled, wanted, places.ravel(), (len(wanted),))


def _join_plans(plans: Sequence[StackPlan]) -> StackPlan:
    """Put stacks without padding one after the other."""
    parts = tuple(len(plan.wanted) for plan in plans)
    starts = np.cumsum((0, *parts[:-1]))
    return StackPlan(
        np.concatenate([plan.indices for plan in plans]),
        sum(plan.filled for plan in plans),
        np.concatenate([plan.wanted for plan in plans]),
        np.concatenate([start + plan.places for start, plan in zip(starts, plans, strict=True)]),
        parts,
    )


@dataclass(frozen=True)
class RequiredSlices:
    """All slices that are needed to extract some stacks from a whole series."""

    stacks: tuple[tuple[StackView, float], ...]
    """views with the same selection, and the offsets of their slices"""

    def __call__(self, z_mm: np.ndarray) -> np.ndarray:
        """Return increasing int64 indices from the positions (slices,) of a series."""
        selected = self.stacks[0][0].selection.choose(z_mm)
        plans = [plan_stack(z_mm[selected], (), view, offset) for view, offset in self.stacks]
        return selected[np.unique(np.concatenate([plan.wanted for plan in plans]))]


def choose_slices(
    z_mm: np.ndarray, first: int, stop: int, view: StackView, offset: float
) -> tuple[np.ndarray, int]:
    """Choose the slices of a stack.

    Args:
        z_mm: (slices,) positions, decreasing from head to feet.
        first, stop: z range, as indices.
        view: number of slices and their distance.
        offset: 0..1, where 0.5 is the middle. Evenly spread slices shift by it within their bins. Slices at a
            distance shift by it through the z range if that is longer than the stack, else by one distance
            around its middle.

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


def square_around(box: Box, size: int, margin: float) -> tuple[int, int, int]:
    """Return left, top and side of the square around a box with a margin on each side, inside the image.

    Args:
        margin: relative to the longer side of the box.
    """
    side = max(box.right - box.left, box.bottom - box.top)
    side = min(size, max(1, round(side * (1 + 2 * margin))))
    left, top = (
        int(np.clip(round((low + high - side) / 2), 0, size - side))
        for low, high in ((box.left, box.right), (box.top, box.bottom))
    )
    return left, top, side
