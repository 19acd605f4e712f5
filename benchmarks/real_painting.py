"""The phantom's painters on real CT: a body of distances to masks, and a canvas with the series' noise.

Painters ask a body for distances (mm) to an organ, to the cavity and to the diaphragm. Here these are
distance transforms of masks. Tissue that a painter replaces gets new noise like the organ's own, so that a
lesion cannot be recognised by its smoothness.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from real_volumes import RealVolume
from scipy import ndimage

from src.phantom.body import ORGAN_LABELS
from src.phantom.shapes import Array
from src.phantom.voxel_grid import Box, Canvas, Scan

ABDOMEN = "abdomen"
"""Name of the fat between the organs, the place of free gas."""
WALL_MM = 22.0
"""Depth below the skin from which tissue other than subcutaneous fat counts as inside the trunk's wall."""
_BRIDGE_MM = 4.0
"""Half width of gaps in the muscles through which subcutaneous fat does not go on."""
FAT_HU = (-140.0, -50.0)
FAT_NEAR_MM = (3.0, 45.0)
"""Distance of the abdomen's fat from the organs with masks."""
_SURROUNDINGS_MM = 30.0
_HIGHEST_MM = 1e3


@dataclass(frozen=True)
class Field:
    """Signed distances (mm) in a part of a volume, sampled between voxels."""

    distance: Array
    first: tuple[int, int, int]
    scan: Scan

    @classmethod
    def of_mask(cls, mask: Array, scan: Scan) -> "Field":
        """Compute distances in the mask's box and 30 mm around it; further away they are those of the border.

        The first and last slice of the mask are taken to go on: the end of a series, or of a range of slices,
        is no surface of an organ.
        """
        margin = [int(np.ceil(_SURROUNDINGS_MM / mm)) for mm in scan.spacing_mm]
        box = tuple(
            slice(max(0, part.start - extra), part.stop + extra)
            for part, extra in zip(ndimage.find_objects(mask.astype(np.uint8))[0], margin, strict=True)
        )
        inside = mask[box]
        levels = np.flatnonzero(inside.any(axis=(1, 2)))
        outer = ndimage.distance_transform_edt(~inside, scan.spacing_mm)
        thick = np.pad(inside[levels[0] : levels[-1] + 1], ((margin[0],) * 2, (0, 0), (0, 0)), mode="edge")
        inner = np.zeros_like(outer)
        inner[levels[0] : levels[-1] + 1] = ndimage.distance_transform_edt(thick, scan.spacing_mm)[
            margin[0] : len(thick) - margin[0]
        ]
        half = scan.spacing_mm[2] / 2  # the surface runs between the voxels' centres
        distance = np.where(inside, half - inner, outer - half).astype(np.float32)
        return cls(distance, tuple(part.start for part in box), scan)

    def sample(self, x: Array, y: Array, z: Array) -> Array:
        """Interpolate linearly at patient coordinates (mm), which broadcast."""
        (dz, dy, dx), (x0, y0, top) = self.scan.spacing_mm, self.scan.first_voxel_mm
        x, y, z = np.broadcast_arrays(x, y, z)
        index = [(top - z) / dz, (y - y0) / dy, (x - x0) / dx]
        index = [axis - first for axis, first in zip(index, self.first, strict=True)]
        return ndimage.map_coordinates(self.distance, index, order=1, mode="nearest")

    def grown(self, mm: float) -> "Field":
        """The shape with another `mm` around it."""
        return replace(self, distance=self.distance - np.float32(mm))

    def fill(self, labels: Array, label: int) -> Array:
        """Return a copy of labels (Z, Y, X) with the unlabelled voxels of the shape labelled."""
        part = tuple(slice(at, at + n) for at, n in zip(self.first, self.distance.shape, strict=True))
        labels = labels.copy()
        labels[part][(self.distance < 0) & (labels[part] == 0)] = label
        return labels

    def corners_mm(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Corners of the box of the voxels inside."""
        parts = ndimage.find_objects((self.distance < 0).astype(np.uint8))[0]
        low = [part.start + first for part, first in zip(parts, self.first, strict=True)]
        high = [part.stop - 1 + first for part, first in zip(parts, self.first, strict=True)]
        (dz, dy, dx), (x0, y0, top) = self.scan.spacing_mm, self.scan.first_voxel_mm
        return (
            (x0 + dx * low[2], y0 + dy * low[1], top - dz * high[0]),
            (x0 + dx * high[2], y0 + dy * high[1], top - dz * low[0]),
        )


class RealBody:
    """The masks of a volume in the form of a phantom's `Body`."""

    def __init__(self, fields: dict[str, Field], cavity: Field) -> None:
        self._fields, self._cavity = fields, cavity

    def with_organ(self, name: str, field: Field) -> "RealBody":
        return RealBody(self._fields | {name: field}, self._cavity)

    @staticmethod
    def warp(x: Array, y: Array, z: Array) -> tuple[Array, Array]:
        x, y, _ = np.broadcast_arrays(x, y, z)
        return x, y

    def organ(self, name: str, x: Array, y: Array, z: Array) -> Array:
        return self._fields[name].sample(x, y, z)

    def organ_box(self, name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        return self._fields[name].corners_mm()

    def cavity(self, x: Array, y: Array, z: Array) -> Array:
        return self._cavity.sample(x, y, z)

    @staticmethod
    def above_diaphragm(x: Array, y: Array, z: Array) -> Array:
        return np.float32(-_HIGHEST_MM)  # no mask: the lungs' HU keep blood out of them


@dataclass(frozen=True)
class Noise:
    """Noise of a series, measured inside an organ."""

    deviation_hu: float
    sigma_px: float
    """standard deviation of the blur of white noise that gives its correlation between neighbours"""

    @classmethod
    def of_volume(cls, hu: Array, masks: Iterable[Array]) -> "Noise":
        """Measure in each organ (Z, Y, X); the evenest has least anatomy in what is measured."""
        return min((cls.measure(hu, mask) for mask in masks), key=lambda noise: noise.deviation_hu)

    @classmethod
    def measure(cls, hu: Array, mask: Array) -> "Noise":
        """Measure what differs from the mean of 9 x 9 pixels; vessels hardly count in the deviation."""
        inside = ndimage.binary_erosion(mask, np.ones((1, 5, 5)))
        inside = inside if inside.sum() > 300 else mask
        residual = hu - np.stack([ndimage.uniform_filter(plane, 9) for plane in hu])
        both = inside[..., 1:] & inside[..., :-1]
        deviation = 1.4826 * float(np.median(np.abs(residual[inside])))
        limit = 3 * deviation
        left, right = residual[..., :-1][both], residual[..., 1:][both]
        kept = (np.abs(left) < limit) & (np.abs(right) < limit)
        alike = float(np.corrcoef(left[kept], right[kept])[0, 1])
        # white noise after a Gaussian blur: correlation exp(-1 / (4 sigma^2)) at a distance of 1
        return cls(deviation, float(np.sqrt(-0.25 / np.log(np.clip(alike, 0.02, 0.9)))))

    def draw(self, shape: tuple[int, int, int], rng: np.random.Generator) -> Array:
        """Draw noise (Z, Y, X) in HU, correlated in the plane."""
        white = rng.standard_normal(shape, np.float32)
        grain = np.stack([ndimage.gaussian_filter(plane, self.sigma_px, mode="wrap") for plane in white])
        return grain * np.float32(self.deviation_hu / grain.std())


class RealCanvas(Canvas):
    """A real series to paint on."""

    def __init__(self, hu: Array, labels: Array, scan: Scan, body: RealBody, grain: Array) -> None:
        super().__init__(scan, body)
        self.hu, self.labels = hu.copy(), labels.copy()
        self._grain = grain

    def blend(self, box: Box, share: Array, hu: Array | float) -> None:
        """Replace a share of each voxel by tissue of `hu` with the series' noise."""
        super().blend(box, share, hu + self._grain[box])


def scan_of(volume: RealVolume) -> Scan:
    """The grid of a volume, its centre at x = y = 0 and its first slice at z = 0."""
    rows, cols = volume.hu.shape[1:]
    first = -volume.pixel_mm * (cols - 1) / 2, -volume.pixel_mm * (rows - 1) / 2, 0.0
    return Scan(volume.hu.shape, volume.spacing_mm, first, (0.0, 0.0), 0.0)


def masks_of(volume: RealVolume) -> dict[str, Array]:
    """Masks (Z, Y, X) of a volume's solid organs, and of the fat where free gas may lie."""
    names = [name for name in ORGAN_LABELS if name != "bowel"]
    masks = {name: volume.labels == ORGAN_LABELS[name] for name in names}
    masks[ABDOMEN] = _abdominal_fat(volume)
    return {name: mask for name, mask in masks.items() if mask.any()}


def _abdominal_fat(volume: RealVolume) -> Array:
    """Fat inside the wall, beside and in front of the organs' middle, in the lower half of their range."""
    organs = volume.labels > 0
    if not organs.any():
        return organs
    where = np.argwhere(organs)
    middle = where.mean(axis=0)
    near = ndimage.distance_transform_edt(~organs, volume.spacing_mm)
    smooth = ndimage.gaussian_filter(np.clip(volume.hu, -250, 150), (0, 1, 1))
    fat = (smooth > FAT_HU[0]) & (smooth < FAT_HU[1]) & wall_mask(volume)
    fat &= (near > FAT_NEAR_MM[0]) & (near < FAT_NEAR_MM[1])
    fat[: int(middle[0])] = False
    fat[where[:, 0].max() + 1 :] = False
    fat[:, int(middle[1]) :] = False
    return ndimage.binary_opening(fat, np.ones((1, 3, 3)))


def wall_mask(volume: RealVolume) -> Array:
    """Everything inside the wall of the trunk: bool (Z, Y, X)."""
    inside = volume.skin_depth_mm > WALL_MM
    for plane, depth, hu in zip(inside, volume.skin_depth_mm, volume.hu, strict=True):
        fat = (ndimage.gaussian_filter(np.clip(hu, -250, 150), 1) < FAT_HU[1]) & (depth > 0)
        wide = ndimage.distance_transform_edt(fat) * volume.pixel_mm > _BRIDGE_MM
        parts, _ = ndimage.label(wide)
        outer = np.isin(parts, np.unique(parts[(depth < WALL_MM) & wide]))
        outer &= wide
        if outer.any():
            plane &= ndimage.distance_transform_edt(~outer) * volume.pixel_mm > 1.5 * _BRIDGE_MM
    return inside
