"""Extract stacks from prepared series: read their slices, crop them, and arrange them as channels."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from src.cls.organs import MASK_FOLDERS, Key, OrganIndex
from src.cls.views import Box, StackPlan, StackView, plan_stack, share_slices, square_around
from src.core.errors import UserError
from src.core.log import warn
from src.data.packed import PackedSlices
from src.data.prepared import PreparedDataset, image_folder, read_windows
from src.data.selection import SliceSelection
from src.nn.augmentation import centre_crop

REGION_MARGIN = 0.1
"""Margin on each side of an organ's box, relative to its size: masks may miss the rim of an injured organ."""


class Stack(NamedTuple):
    """Slices as read, before augmentation or the centre crop. In each part, neighbours share slices."""

    plan: StackPlan
    images: np.ndarray
    """uint8 (U, S, S, windows) of `plan.wanted`"""
    organs: np.ndarray | None
    """uint8 (T, S, S), zeros if the series has no masks; None if they are not needed"""


def check_view(prepared: PreparedDataset, view: StackView) -> None:
    """Check that stacks of a view can be extracted from a data set.

    Raises:
        UserError: it was prepared at another size, without a window, or with other slices.
    """
    if view.size != prepared.size or set(view.windows) - set(prepared.windows):
        raise UserError(
            f"{prepared.folder} has windows {' '.join(prepared.windows)} at {prepared.size} px, the models "
            f"want {' '.join(view.windows)} at {view.size} px"
        )
    if SliceSelection.read(prepared.slice_policy) != view.selection:
        raise UserError(
            f"{prepared.folder} has slices {prepared.slice_policy} of each series, the models want "
            f"{view.selection.describe()}: prepare it with the same --spacing-z-mm or --count"
        )


def open_organs(
    prepared: PreparedDataset, views: Sequence[StackView], series: pd.DataFrame
) -> OrganIndex | None:
    """Check that stacks of all views can be extracted from a data set, and read the masks that they need.

    Masks of the kind that training used are preferred; a warning reports another kind, and the number of
    series without masks.

    Args:
        series: rows with `patient_id, series_id` that stacks are extracted from.

    Returns:
        None if no view needs masks.

    Raises:
        UserError: see `check_view`; or the data set has no masks.
    """
    for view in views:
        check_view(prepared, view)
    masked = [view for view in views if view.needs_masks]
    if not masked:
        return None
    kinds = [kind for kind in dict.fromkeys(view.masks_from for view in masked) if kind in MASK_FOLDERS]
    present = [kind for kind in kinds if (prepared.folder / MASK_FOLDERS[kind]).is_dir()]
    organs = OrganIndex.read(prepared, present[0] if present else "auto")
    for kind in kinds:
        if kind != organs.source:
            warn(f"models trained with {kind} masks get the {organs.source} ones of {organs.folder}")
    organs.warn_of_missing(series, masked[0])
    return organs


class StackReader:
    """Reads stacks of a prepared data set.

    Args:
        prepared: the prepared data set.
        organs: masks and boxes; a series without them is used whole. None if no view needs masks.
        packed: cache of raw slices, read instead of PNG, with the windows of all views.
    """

    def __init__(
        self, prepared: PreparedDataset, organs: OrganIndex | None, packed: PackedSlices | None = None
    ) -> None:
        self.prepared, self.organs, self.packed = prepared, organs, packed

    def read(self, key: Key, view: StackView, offset: float, with_organs: bool = False) -> Stack:
        """Read the stack of a series.

        Args:
            offset: offset of the slices, 0..1.
            with_organs: return organ maps in addition to the view's channels.

        Raises:
            UserError: a slice is missing or damaged.
        """
        plan = plan_stack(self._positions(key, view), self._boxes(key, view.z_range), view, offset)
        if len(plan.parts) == 1:
            images = self._read_slices(key, plan.wanted, view)
        else:  # two parts may want the same slice
            wanted, places = np.unique(plan.wanted, return_inverse=True)
            images = self._read_slices(key, wanted, view)[places]
        maps = None
        if with_organs or view.mask_channels:
            maps = np.zeros((view.slices, self.prepared.size, self.prepared.size), np.uint8)
            if self.has_organs(key):
                maps = self.organs.read_masks(key, plan.indices)
        return cut_stack(plan, images, maps, view, self._boxes(key, view.in_plane))

    def has_organs(self, key: Key) -> bool:
        return self.organs is not None and key in self.organs

    def _boxes(self, key: Key, region: str) -> tuple[Box, ...]:
        return self.organs.boxes_of(key, region) if self.organs is not None else ()

    def _read_slices(self, key: Key, indices: np.ndarray, view: StackView) -> np.ndarray:
        if self.packed is not None:
            return self.packed.read(key, indices)
        folder = image_folder(self.prepared.folder, *key)
        return read_windows(folder, indices, self.prepared.size, self.prepared.channels(view.windows))

    def _positions(self, key: Key, view: StackView) -> np.ndarray:
        """Return positions in mm; the table is not read if the view needs no distances."""
        if view.spacing_mm or view.neighbour_mm:
            return self.prepared.z_mm(*key)
        return -np.arange(self.prepared.slice_counts[key], dtype=np.float64)


def cut_stack(
    plan: StackPlan, images: np.ndarray, maps: np.ndarray | None, view: StackView, boxes: Sequence[Box]
) -> Stack:
    """Crop slices to the region of a view.

    S is the size of the prepared slices, or the view's crop if a region is cropped.

    Args:
        images: uint8 (U, size, size, windows) of `plan.wanted`.
        maps: organ maps uint8 (T, size, size).
        boxes: one box of the region for each part of the plan; none takes the whole slice.
    """
    if view.in_plane != "body":
        squares = [square_around(box, view.size, REGION_MARGIN) for box in boxes] or [(0, 0, view.size)]
        images = _cut_parts(images, plan.parts, squares, view.crop)
        if maps is not None:
            counts = share_slices(view.slices, len(squares))
            maps = _cut_parts(maps, counts, squares, view.crop, are_labels=True)
    return Stack(plan, images, maps)


def crop_centre(stack: Stack, view: StackView) -> Stack:
    """Crop the centre of a stack, for prediction; training crops at random."""
    if view.in_plane != "body":
        return stack
    maps = None if stack.organs is None else centre_crop(stack.organs, view.crop)
    return Stack(stack.plan, centre_crop(stack.images, view.crop), maps)


def to_channels(stack: Stack, view: StackView) -> np.ndarray:
    """Return uint8 (T, C, H, W): windows of each neighbour, then masks; 0 in padding."""
    sides, filled = stack.images.shape[1:3], stack.plan.filled
    joined = np.empty((view.slices, view.channels, *sides), np.uint8)
    joined[filled:] = 0
    organs = np.minimum(stack.organs, 1) if view.masks == "any" else stack.organs
    grey, masks = np.split(joined, [view.channels - view.mask_channels], axis=1)  # views
    places = stack.plan.places.reshape(view.slices, view.neighbours)
    for number in range(filled):
        planes = grey[number].reshape(view.neighbours, -1, *sides)
        for place, windows in zip(places[number], planes, strict=True):
            cv2.split(stack.images[place], list(windows))  # into the given planes
        for label, plane in enumerate(masks[number], 1):
            cv2.compare(organs[number], label, cv2.CMP_EQ, dst=plane)  # 255 where it is equal, else 0
    return joined


def _cut_parts(
    images: np.ndarray,
    counts: Sequence[int],
    squares: Sequence[tuple[int, int, int]],
    crop: int,
    are_labels: bool = False,
) -> np.ndarray:
    """Cut a square (left, top, side) out of each part of (N, H, W, ...), resized to (N, crop, crop, ...)."""
    resized, first = np.empty((len(images), crop, crop, *images.shape[3:]), np.uint8), 0
    for (left, top, side), count in zip(squares, counts, strict=True):
        smooth = cv2.INTER_AREA if side > crop else cv2.INTER_LINEAR
        for number in range(first, first + count):
            image = images[number, top : top + side, left : left + side]
            drawn = cv2.resize(image, (crop, crop), interpolation=cv2.INTER_NEAREST if are_labels else smooth)
            resized[number] = drawn.reshape(resized[number].shape)  # cv2 drops a single channel
        first += count
    return resized
