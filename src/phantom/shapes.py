"""Implicit shapes: signed distances in millimetres, and the share of a voxel that a shape covers.

Every shape is a function of broadcastable coordinate arrays ``x, y, z`` (mm, patient axes: x to the left,
y to the back, z to the head) that returns the distance to its surface: negative inside, positive outside.
It can therefore be evaluated on a voxel grid and at single points.
Source of the ellipsoid bound: I. Quilez, "distance functions".
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

Array = np.ndarray
Point = Sequence[float]


def ellipsoid(x: Array, y: Array, z: Array, centre_mm: Point, radii_mm: Point) -> Array:
    """First-order signed distance (mm) to an axis-aligned ellipsoid."""
    dx, dy, dz = x - np.float32(centre_mm[0]), y - np.float32(centre_mm[1]), z - np.float32(centre_mm[2])
    rx, ry, rz = (np.float32(1.0 / r) for r in radii_mm)
    dx, dy, dz = dx * rx, dy * ry, dz * rz
    reach = np.sqrt(dx * dx + dy * dy + dz * dz)
    dx, dy, dz = dx * rx, dy * ry, dz * rz
    gradient = np.sqrt(dx * dx + dy * dy + dz * dz)
    return reach * (reach - 1) / (gradient + np.float32(1e-4))


def capsule(
    x: Array, y: Array, z: Array, start_mm: Point, end_mm: Point, radii_mm: tuple[float, float]
) -> Array:
    """Signed distance (mm) to a tube from `start_mm` to `end_mm` with radii interpolated in `radii_mm`."""
    axis = np.asarray(end_mm, np.float32) - np.asarray(start_mm, np.float32)
    dx, dy, dz = (c - np.float32(s) for c, s in zip((x, y, z), start_mm, strict=True))
    along = (dx * axis[0] + dy * axis[1] + dz * axis[2]) / np.float32(max(float(axis @ axis), 1e-6))
    along = np.clip(along, 0, 1)
    dx, dy, dz = dx - along * axis[0], dy - along * axis[1], dz - along * axis[2]
    radius = np.float32(radii_mm[0]) + along * np.float32(radii_mm[1] - radii_mm[0])
    return np.sqrt(dx * dx + dy * dy + dz * dz) - radius


def tube(x: Array, y: Array, z: Array, points_mm: Sequence[Point], radius_mm: float) -> Array:
    """Signed distance (mm) to a tube of constant radius through all of `points_mm`."""
    distances = [capsule(x, y, z, start, end, (radius_mm, radius_mm)) for start, end in pairwise(points_mm)]
    return np.minimum.reduce(distances)


def oval_cylinder(
    x: Array, y: Array, centre_mm: Point, radii_mm: tuple[float, float], square: float = 0.0
) -> Array:
    """Signed distance (mm, measured along the ray from the centre) to an upright cylinder.

    `square` 0 is an ellipse; towards 1 the cross-section fills its corners, as a supine trunk does.
    """
    dx, dy = x - np.float32(centre_mm[0]), y - np.float32(centre_mm[1])
    u, v = (dx / radii_mm[0]) ** 2, (dy / radii_mm[1]) ** 2
    reach = np.sqrt(np.sqrt(u * u + v * v + np.float32(2 * (1 - square)) * u * v)) + np.float32(1e-4)
    return np.sqrt(dx * dx + dy * dy) * (1 - 1 / reach)


def smooth_union(a: Array, b: Array, blend_mm: float) -> Array:
    """Union of two shapes with their crease rounded over `blend_mm`."""
    h = np.maximum(blend_mm - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h / np.float32(4 * blend_mm)


def coverage(distance: Array, edge_mm: float) -> Array:
    """Share (0..1) of each voxel inside a shape: a linear ramp `edge_mm` wide, the partial volume."""
    return np.clip(np.float32(0.5) - distance / np.float32(edge_mm), 0, 1)


def smoothstep(value: Array, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high`, a smooth cubic between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
