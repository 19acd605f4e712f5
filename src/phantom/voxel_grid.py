"""The voxel grid a series is painted on: coordinates of every voxel, HU, organ labels, injury masks."""

from dataclasses import dataclass

import numpy as np

from src.phantom.body import WARP_REACH_MM, Body
from src.phantom.shapes import Array, Point, coverage

AIR_HU = -1000.0
FAT_HU = -100.0
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Scan:
    """The scanned box: slice 0 is nearest the head, rows run to the back, columns to the left.

    `first_voxel_mm` is the DICOM position (x, y, z) of voxel [0, 0, 0]; spacing is (z, y, x) in mm.
    `centre_mm` and `roll_rad` define the position of the patient on the table.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    first_voxel_mm: tuple[float, float, float]
    centre_mm: tuple[float, float]
    roll_rad: float

    @property
    def z_range_mm(self) -> tuple[float, float]:
        """Positions of the lowest and highest slice (mm)."""
        top = self.first_voxel_mm[2]
        return top - (self.shape[0] - 1) * self.spacing_mm[0], top

    def axes_mm(self) -> tuple[Array, Array, Array]:
        """Scanner coordinates x, y, z (mm) of columns, rows and slices."""
        (nz, ny, nx), (dz, dy, dx) = self.shape, self.spacing_mm
        x0, y0, z0 = self.first_voxel_mm
        return x0 + dx * np.arange(nx), y0 + dy * np.arange(ny), z0 - dz * np.arange(nz)

    def to_patient(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Convert scanner to patient coordinates (mm) in the plane: undo shift and roll."""
        cos, sin = np.cos(self.roll_rad), np.sin(self.roll_rad)
        x, y = x - self.centre_mm[0], y - self.centre_mm[1]
        return cos * x + sin * y, -sin * x + cos * y


class Canvas:
    """HU and labels of one series while its anatomy is painted, back to front."""

    def __init__(self, scan: Scan, body: Body) -> None:
        self.scan = scan
        x, y, z = self.scan.axes_mm()
        flat_x, flat_y = scan.to_patient(x[None, :], y[:, None])
        self._flat_x, self._flat_y, self._flat_z = flat_x, flat_y, z
        grid = (
            flat_x[None].astype(np.float32),
            flat_y[None].astype(np.float32),
            z[:, None, None].astype(np.float32),
        )
        self.x, self.y = body.warp(*grid)
        self.z = grid[2]  # (Z, 1, 1), so that functions of the level alone are cheap
        self.hu = np.full(scan.shape, AIR_HU, np.float32)
        self.labels = np.zeros(scan.shape, np.uint8)
        self.injuries: dict[str, Array] = {}
        self.edge_mm = 1.2 * max(scan.spacing_mm[1:])

    def box(self, low_mm: Point, high_mm: Point, margin_mm: float = 3.0) -> Box:
        """Index box that contains the patient-coordinate box from `low_mm` to `high_mm` under any warp."""
        reach = WARP_REACH_MM + margin_mm
        near = [low - reach for low in low_mm]
        far = [high + reach for high in high_mm]
        slices = (self._flat_z >= near[2]) & (self._flat_z <= far[2])
        plane = (self._flat_x >= near[0]) & (self._flat_x <= far[0])
        plane &= (self._flat_y >= near[1]) & (self._flat_y <= far[1])
        return _span(slices), _span(plane.any(axis=1)), _span(plane.any(axis=0))

    def coordinates(self, box: Box) -> tuple[Array, Array, Array]:
        """Patient coordinates (mm) of the voxels of `box`: x and y full, z of shape (slices, 1, 1)."""
        return self.x[box], self.y[box], self.z[box[0]]

    def paint(self, box: Box, distance: Array, hu: Array | float, label: int = 0) -> None:
        """Blend tissue of `hu` into the voxels where `distance` is negative; label those mostly inside."""
        share = coverage(distance, self.edge_mm)
        self.blend(box, share, hu)
        self.labels[box][share > 0.5] = label

    def blend(self, box: Box, share: Array, hu: Array | float) -> None:
        """Replace a share (0..1) of each voxel of `box` by tissue of `hu`."""
        self.hu[box] += share * (hu - self.hu[box])

    def seep(self, box: Box, distance: Array, hu: float) -> Array:
        """Replace fat by fluid of `hu` inside a shape, sparing organs, bowel and gas.

        Returns the share of each voxel of `box` that became fluid.
        """
        current = self.hu[box]
        fat = np.clip((-20 - current) / 60, 0, 1) * np.clip((current + 260) / 100, 0, 1)
        share = coverage(distance, self.edge_mm) * fat * (self.labels[box] == 0)
        self.blend(box, share, hu)
        return share

    def mark_injury(self, name: str, box: Box, share: Array) -> None:
        """Record the voxels of an injury, from which image-level labels are derived."""
        mask = self.injuries.setdefault(name, np.zeros(self.scan.shape, bool))
        mask[box] |= share > 0.5


def bounds(points_mm: Array, radius_mm: float) -> tuple[Array, Array]:
    """Corners of the box around a tube through `points_mm` (N, 3)."""
    points = np.asarray(points_mm, np.float32)
    return points.min(axis=0) - radius_mm, points.max(axis=0) + radius_mm


def _span(hit: Array) -> slice:
    where = np.flatnonzero(hit)
    return slice(int(where[0]), int(where[-1]) + 1) if where.size else slice(0, 0)
