"""The trunk in the slices of a series: the body without shoulders and without arms at the sides.

One square is cut from all slices, so whatever is wider than the trunk takes pixels from the organs. What may
be trunk counts as trunk: folds of skin, breasts, arms pressed to the body, a table that touches it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from src.ct.sampled_slices import BODY_MM2, DENSE_HU

_GRID_MM = 3.0  # step of the grid on which the body is found

_LUNG_HU = (-950, -500)  # gas in the bowel is near -1000
_CHEST = 0.08  # area of lung relative to the body's; the edges of gas in the bowel reach 0.025
_LUNG_BASE = 0.04  # likewise; a field of view that cuts less lung leaves no large part of the chest wall
_CHEST_WALL_MM = 40.0  # ribs, muscle and fat at the side of the upper lungs

_CONTACTS_MM = (16.0, 24.0, 32.0)  # half the width of the place where an arm touches the trunk
_ARM_DEPTH = 1.25  # an arm is thicker than the contact, a fold of constant thickness is not
_ARM_AREA = 0.25  # relative to the trunk; a second leg is larger
_BONE_HU, _BONE_MM2 = 240, 80.0  # in the section of an arm at least; folds of skin and breasts have none
_TRUNK_DEPTH = 0.9  # diameter of the largest circle in the body relative to its height

Box = tuple[int, int, int, int]
"""Left, top, right, bottom (exclusive), in pixels."""


def find_trunk(
    slices: Iterable[np.ndarray], pixel_mm: tuple[float, float], lowest_hu: float
) -> tuple[Box, Box] | None:
    """Find the body and the trunk in all `slices` (rows, cols; HU).

    Above the level at which the lungs reach half of their largest area lie the shoulders: only the lungs and
    the chest wall around them count there. The trunk is the whole body in sources that cannot show lungs.

    Args:
        slices: from head to feet.
        pixel_mm: spacing of rows and columns.
        lowest_hu: lowest HU that an 8-bit source can hold.

    Returns:
        Box around the body with arms and shoulders, and box around the trunk; None if no slice shows a body.
    """
    found = (_find_body(hu, pixel_mm, lowest_hu) for hu in slices)
    bodies = [body for body in found if body is not None]
    if not bodies:
        return None
    whole = _around([body.box for body in bodies])
    if lowest_hu > _LUNG_HU[0]:
        return bodies[0].in_pixels(whole), bodies[0].in_pixels(whole)
    n_above = _count_shoulders(bodies)
    above, below = bodies[:n_above], bodies[n_above:]
    chests = [body.chest for body in above if body.chest is not None]
    _, top, _, bottom = _around([body.box for body in below])
    sides = (_outermost(below, 0), top, _outermost(below, 1), bottom)
    return bodies[0].in_pixels(whole), bodies[0].in_pixels(_around([sides, *chests]))


def _around(boxes: Sequence[Box]) -> Box:
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _count_shoulders(bodies: Sequence["_Body"]) -> int:
    """Return the number of slices above the level of the shoulders.

    0 without lungs, and if most slices lie above: they are no shoulders, or the series is upside down.
    """
    if not any(body.lung_area >= _CHEST * body.area for body in bodies):
        return 0
    areas = [body.lung_area for body in bodies]
    n_above = next(index for index, area in enumerate(areas) if 2 * area >= max(areas))
    return n_above if 2 * n_above < len(bodies) else 0


def _outermost(bodies: Sequence["_Body"], side: int) -> int:
    """Return the outermost edge of the trunk at the left (0) or right (1).

    Slices whose body reaches no further than a trunk that is known need not be examined.
    """
    sign = 2 * side - 1
    by_reach = sorted(bodies, key=lambda body: -sign * body.box[2 * side])
    edge = by_reach[0].sides[side]
    for body in by_reach[1:]:
        if sign * body.box[2 * side] <= sign * edge:
            break
        edge = max(edge, body.sides[side], key=lambda each: sign * each)
    return edge


def _find_body(hu: np.ndarray, pixel_mm: tuple[float, float], lowest_hu: float) -> "_Body | None":
    """Find the largest connected component denser than lung; None if it is too small for a body."""
    row_step, col_step = (max(1, round(_GRID_MM / mm)) for mm in pixel_mm)
    mm = (row_step * pixel_mm[0], col_step * pixel_mm[1])
    grid = hu[::row_step, ::col_step].copy()  # a view would keep the slice
    dense = (grid > max(DENSE_HU, lowest_hu)).astype(np.uint8)
    labels, stats = _components(_open(dense))
    if len(stats) == 1:  # only the background
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    left, top, width, height, area = (int(value) for value in stats[largest])
    if area * mm[0] * mm[1] < BODY_MM2:
        return None
    box = (left, top, left + width, top + height)
    return _Body(grid, dense, labels == largest, box, area, (row_step, col_step), hu.shape, mm)


@dataclass(frozen=True)
class _Body:
    """The body in a slice, on a grid of about 3 mm. What takes time is computed on demand."""

    grid: np.ndarray
    """(rows, cols) HU"""
    dense: np.ndarray
    """(rows, cols) uint8, 1 where denser than lung"""
    mask: np.ndarray
    """(rows, cols) bool"""
    box: Box
    area: int
    """Number of pixels of `mask`."""
    steps: tuple[int, int]
    """Rows and columns of the slice per row and column of the grid."""
    shape: tuple[int, int]
    """Rows and columns of the slice."""
    mm: tuple[float, float]
    """Spacing of the grid's rows and columns."""

    def in_pixels(self, box: Box) -> Box:
        """Return a box of the grid in pixels of the slice."""
        (row_step, col_step), (rows, cols) = self.steps, self.shape
        left, top, right, bottom = box
        return left * col_step, top * row_step, min(right * col_step, cols), min(bottom * row_step, rows)

    @cached_property
    def _every_other(self) -> tuple[np.ndarray, np.ndarray]:
        """`mask`, and what has the HU of lung, in every other pixel within `box`; (rows, cols) bool."""
        left, top, right, bottom = self.box
        every_other = np.s_[top:bottom:2, left:right:2]
        hu = self.grid[every_other]
        return self.mask[every_other], (hu > _LUNG_HU[0]) & (hu < _LUNG_HU[1])

    @cached_property
    def lung_area(self) -> int:
        """Pixels of lung between two parts of the body: also of lungs that the field of view cuts."""
        mask, like_lung = self._every_other
        return 4 * int(np.count_nonzero(like_lung & (_between_rows(mask) | _between_rows(mask.T).T)))

    @property
    def chest(self) -> Box | None:
        """Box around the lungs and the chest wall, within `box`."""
        mask, like_lung = self._every_other
        lungs = like_lung & _between_rows(mask)  # not between a raised arm and the neck
        if not lungs.any():
            return None
        rows, cols = (2 * np.flatnonzero(lungs.any(axis=axis)) for axis in (1, 0))
        wall_rows, wall_cols = (round(_CHEST_WALL_MM / mm) for mm in self.mm)
        left, top, right, bottom = self.box
        return (
            max(left, left + int(cols[0]) - wall_cols),
            max(top, top + int(rows[0]) - wall_rows),
            min(right, left + int(cols[-1]) + 2 + wall_cols),
            min(bottom, top + int(rows[-1]) + 2 + wall_rows),
        )

    @cached_property
    def sides(self) -> tuple[int, int]:
        """Left and right end of the body without arms.

        With arms where there is lung, or where no large circle fits into the body: a field of view that cuts
        the lungs leaves parts of the chest wall, which look like arms.
        """
        left, top, right, bottom = self.box
        if self.lung_area >= _LUNG_BASE * self.area:
            return left, right
        grid_mm = float(np.sqrt(self.mm[0] * self.mm[1]))
        depth_mm = self._depth() * grid_mm
        if 2 * depth_mm.max() < _TRUNK_DEPTH * (bottom - top) * self.mm[0]:
            return left, right
        rest = self.mask.copy()
        for contact_mm in _CONTACTS_MM:
            for arm in _arms(depth_mm, contact_mm, grid_mm):
                if np.count_nonzero(self.grid[arm & self.mask] > _BONE_HU) * grid_mm**2 >= _BONE_MM2:
                    rest &= ~arm
        cols = np.flatnonzero(rest.any(axis=0))
        return int(cols[0]), int(cols[-1]) + 1

    def _depth(self) -> np.ndarray:
        """Return distances (rows, cols) from the air around the body, or from the edge of the image.

        Bowel and lungs count as tissue.
        """
        outlines, _ = cv2.findContours(self.dense, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        solid = _open(cv2.drawContours(np.zeros(self.dense.shape, np.uint8), outlines, -1, 1, cv2.FILLED))
        padded = cv2.copyMakeBorder(solid, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        return cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]


def _arms(depth_mm: np.ndarray, contact_mm: float, grid_mm: float) -> Iterable[np.ndarray]:
    """Yield parts (rows, cols; bool) that are thicker than the place where they are joined to the trunk.

    Args:
        depth_mm: (rows, cols) distance from the air.
        contact_mm: half the width of the contact, at most.
    """
    labels, stats = _components((depth_mm > contact_mm).astype(np.uint8))
    trunk = labels.flat[depth_mm.argmax()]
    from_trunk = None
    for label, part in enumerate(stats):
        core = labels == label
        is_small = part[cv2.CC_STAT_AREA] <= _ARM_AREA * stats[trunk, cv2.CC_STAT_AREA]
        if label in (0, trunk) or not is_small or depth_mm[core].max() < _ARM_DEPTH * contact_mm:
            continue
        from_trunk = _distance_from(labels == trunk) * grid_mm if from_trunk is None else from_trunk
        # a right-angled corner of the trunk is 1.41 times as far from its core as a side
        yield (_distance_from(core) * grid_mm < from_trunk) & (from_trunk > 1.5 * contact_mm)


def _between_rows(mask: np.ndarray) -> np.ndarray:
    """Return what lies between the first and the last row of the mask in each column."""
    row = np.arange(len(mask))[:, None]
    return (row > mask.argmax(axis=0)) & (row < len(mask) - 1 - mask[::-1].argmax(axis=0))


def _distance_from(mask: np.ndarray) -> np.ndarray:
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)


def _open(mask: np.ndarray) -> np.ndarray:
    """Cut thin bridges, as those between the patient and the table's shell."""
    return cv2.morphologyEx(mask, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (rows, cols) and statistics (labels, 5) of connected components; 0 is the background."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    return labels, stats
