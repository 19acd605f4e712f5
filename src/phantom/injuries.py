"""Injuries as described in radiology, one function each. Constants set how difficult they are to detect."""

from dataclasses import dataclass

import numpy as np

from src.phantom.body import ORGAN_LABELS, Body, Enhancement
from src.phantom.bowel import GAS_HU, mesentery
from src.phantom.organs_and_vessels import aorta_distance, point_in_organ
from src.phantom.shapes import Array, Point, capsule, coverage, ellipsoid, smoothstep
from src.phantom.voxel_grid import Canvas, bounds

Span = tuple[float, float]


@dataclass(frozen=True)
class LacerationSizes:
    """Ranges for streaks in an organ and the blood around it. Contrast is in HU relative to the organ."""

    count: tuple[int, int]
    length_mm: Span  # as a share of the organ's extent if `relative`
    radius_mm: Span
    contrast_hu: Span
    relative: bool
    haematoma_mm: Span  # maximum thickness of the crescent


@dataclass(frozen=True)
class BleedingSizes:
    """Ranges for a pool of active bleeding in a clot."""

    radius_mm: Span  # in the plane
    half_height_mm: Span
    relative_hu: Span  # as a multiple of the aorta's HU
    clot_mm: Span  # of the clot around the pool


LACERATIONS = {
    "low": LacerationSizes((1, 1), (8, 16), (3.0, 4.0), (-45, -25), False, (0, 0)),
    "high": LacerationSizes((3, 5), (0.5, 0.8), (9.0, 14.0), (-85, -60), True, (24, 36)),
}
ORGAN_EXTENT_MM = {"liver": 140.0, "spleen": 90.0, "left_kidney": 90.0, "right_kidney": 90.0}
HAEMATOMA_HU: Span = (42, 60)
EXTRAVASATION = BleedingSizes((15, 22), (28, 40), (1.2, 1.6), (14, 22))
EXTRAVASATION_GROWTH = {"arterial": 1.0, "portal": 1.3}  # the pool is larger in the later phase
FREE_GAS_POCKETS = (3, 5)
FREE_GAS_RADII_MM: tuple[Span, Span, Span] = ((35, 60), (14, 24), (35, 60))
MESENTERIC_FLUID_HU: Span = (10, 22)
MESENTERIC_FLUID_RADII_MM: tuple[Span, Span, Span] = ((50, 75), (35, 50), (40, 60))
SCAN_MARGIN_MM = 20.0  # distance of injuries from the ends of the range that all series cover


@dataclass(frozen=True)
class InjurySite:
    """Inputs for drawing an injury: the patient, the range that all series cover, and a random generator."""

    body: Body
    z_limits_mm: Span
    rng: np.random.Generator

    def level(self, low_mm: float, high_mm: float) -> float:
        """Draw a level (mm) between two heights, inside the scan."""
        low, high = self.z_limits_mm[0] + SCAN_MARGIN_MM, self.z_limits_mm[1] - SCAN_MARGIN_MM
        return float(np.clip(self.rng.uniform(low_mm, high_mm), low, high))


def injure_organ(canvas: Canvas, site: InjurySite, name: str, sizes: LacerationSizes) -> None:
    """Lacerate an organ, in the sizes of a grade (`LACERATIONS`)."""
    rng = site.rng
    limits = site.z_limits_mm[0] + SCAN_MARGIN_MM, site.z_limits_mm[1] - SCAN_MARGIN_MM
    scale = ORGAN_EXTENT_MM[name] if sizes.relative else 1.0
    for _ in range(rng.integers(sizes.count[0], sizes.count[1] + 1)):
        centre = point_in_organ(site.body, name, rng, (4.0, 22.0), limits)
        heading = rng.normal(size=3) * (1, 1, 0.8)
        reach = heading / np.linalg.norm(heading) * rng.uniform(*sizes.length_mm) * scale / 2
        radius, contrast = rng.uniform(*sizes.radius_mm), rng.uniform(*sizes.contrast_hu)
        _lacerate(canvas, site.body, name, (centre - reach, centre + reach), radius, contrast)
    if sizes.haematoma_mm[1]:
        bleed_around(canvas, site, name, rng.uniform(*sizes.haematoma_mm))


def _lacerate(
    canvas: Canvas, body: Body, name: str, ends_mm: tuple[Point, Point], radius_mm: float, contrast_hu: float
) -> None:
    """Darken a ragged streak of an organ by `contrast_hu`."""
    box = canvas.box(*bounds(np.array(ends_mm), radius_mm + 3))
    x, y, z = canvas.coordinates(box)
    streak = capsule(x, y, z, *ends_mm, (radius_mm, 0.6 * radius_mm))
    ragged = streak + 0.3 * radius_mm * np.sin(x / 2.4 + z / 3) * np.sin(y / 2.2)
    share = coverage(np.maximum(ragged, body.organ(name, x, y, z)), canvas.edge_mm)
    canvas.hu[box] += share * (canvas.labels[box] == ORGAN_LABELS[name]) * np.float32(contrast_hu)


def bleed_around(canvas: Canvas, site: InjurySite, name: str, thickness_mm: float) -> None:
    """Paint a crescent of blood on one side of an organ: under its capsule, and outside in place of fat."""
    body, rng = site.body, site.rng
    hu, angle = rng.uniform(*HAEMATOMA_HU), rng.uniform(0, 2 * np.pi)
    low, high = (np.array(corner) for corner in body.organ_box(name))
    box = canvas.box(low, high, margin_mm=thickness_mm)
    x, y, z = canvas.coordinates(box)
    middle = (low + high) / 2
    dx, dy, dz = x - middle[0], y - middle[1], z - middle[2]
    reach = np.sqrt(dx * dx + dy * dy + dz * dz) + 1
    facing = (np.cos(angle) * dx + np.sin(angle) * dy) / reach
    thickness = np.float32(thickness_mm) * smoothstep(facing, -0.1, 0.7)
    distance = body.organ(name, x, y, z)
    room = np.maximum(body.cavity(x, y, z) + 1.5, body.above_diaphragm(x, y, z) + 3)
    canvas.seep(box, np.maximum(distance - thickness, room), hu)
    inner = coverage(np.maximum(distance, -0.6 * thickness - distance), canvas.edge_mm)
    inner = inner * (canvas.labels[box] == ORGAN_LABELS[name])
    canvas.blend(box, inner, hu)


def extravasate(canvas: Canvas, site: InjurySite, enhancement: Enhancement) -> None:
    """Paint active bleeding in the mesentery or beside a solid organ."""
    growth = EXTRAVASATION_GROWTH[enhancement.phase]
    bleed_actively(canvas, site, _bleeding_point(site), enhancement.aorta, growth, EXTRAVASATION)


def bleed_actively(
    canvas: Canvas, site: InjurySite, centre: Array, aorta_hu: float, growth: float, sizes: BleedingSizes
) -> None:
    """Paint an irregular pool of blood with contrast medium, `growth` times as large, inside a clot."""
    body, rng = site.body, site.rng
    radius = rng.uniform(*sizes.radius_mm) * growth
    height = rng.uniform(*sizes.half_height_mm) * growth
    hu = aorta_hu * rng.uniform(*sizes.relative_hu)
    clot, clot_hu = rng.uniform(*sizes.clot_mm), rng.uniform(*HAEMATOMA_HU)
    lobes = [(rng.normal(0, 0.45, 3), rng.uniform(0.45, 0.75)) for _ in range(4)]
    size = np.array([radius, radius, height])
    box = canvas.box(centre - size - clot, centre + size + clot)
    x, y, z = canvas.coordinates(box)
    parts = [ellipsoid(x, y, z, centre, 0.85 * size)]
    parts += [ellipsoid(x, y, z, centre + offset * size, share * size) for offset, share in lobes]
    pool = np.minimum.reduce(parts) + 0.9 * np.sin(x / 2.5) * np.sin(y / 2.9 + z / 3)
    room = body.cavity(x, y, z) + 2
    canvas.seep(box, np.maximum(np.minimum.reduce(parts) - clot, room), clot_hu)
    pool = np.maximum(pool, room)
    canvas.paint(box, pool, hu)
    canvas.mark_injury("Active_Extravasation", box, coverage(pool, canvas.edge_mm))


def _bleeding_point(site: InjurySite) -> Array:
    """Draw a point of the mesentery or beside a solid organ, with room around it and far from the aorta."""
    body, rng = site.body, site.rng
    place = rng.choice(
        ["mesentery", "liver", "spleen", "left_kidney", "right_kidney"], p=[0.4, 0.15, 0.15, 0.15, 0.15]
    )
    w, d = body.half_width_mm, body.half_depth_mm
    low = np.array([-w, -d, site.level(-120, -100)])
    high = np.array([w, d, site.level(100, 110)])
    points = rng.uniform(low, high, (6000, 3)).astype(np.float32)
    x, y, z = points.T
    room = np.maximum(body.cavity(x, y, z) + 16, body.above_diaphragm(x, y, z) + 20)
    spine = 14 - np.hypot(x, y - (d - 8)) + 24
    clear = np.maximum(np.maximum(room, spine), 32 - aorta_distance(body, x, y, z))
    solids = np.minimum.reduce([body.organ(name, x, y, z) for name in ORGAN_EXTENT_MM])
    if place == "mesentery":
        fit = np.maximum(mesentery(body, x, y, z), 14 - solids)
    else:
        fit = np.maximum(np.abs(body.organ(place, x, y, z) - 8) - 5, 3 - solids)
    return points[np.argmin(np.maximum(clear, 0) + np.maximum(fit, 0))]


def perforate_bowel(canvas: Canvas, site: InjurySite) -> None:
    """Paint a bowel injury: free gas under the front wall outside the gut, and fluid between the loops."""
    body, rng = site.body, site.rng
    w, d = body.half_width_mm, body.half_depth_mm
    for _ in range(rng.integers(FREE_GAS_POCKETS[0], FREE_GAS_POCKETS[1] + 1)):
        x0, z0 = rng.uniform(-0.5, 0.5) * w, site.level(-90, 95)
        radii = [rng.uniform(*span) for span in FREE_GAS_RADII_MM]
        column = np.linspace(-1.2 * d, 0, 400)
        inside = body.cavity(np.float32(x0), column, np.float32(z0)) < 0
        free_gas(canvas, site, np.array([x0, column[np.argmax(inside)], z0]), radii)
    centre = np.array([rng.uniform(-0.3, 0.3) * w, rng.uniform(-0.45, -0.1) * d, site.level(-95, -35)])
    radii = [rng.uniform(*span) for span in MESENTERIC_FLUID_RADII_MM]
    box = canvas.box(centre - radii, centre + radii)
    x, y, z = canvas.coordinates(box)
    region = np.maximum(ellipsoid(x, y, z, centre, radii), body.cavity(x, y, z) + 2)
    canvas.mark_injury("Bowel", box, canvas.seep(box, region, rng.uniform(*MESENTERIC_FLUID_HU)))


def free_gas(canvas: Canvas, site: InjurySite, centre: Array, radii: Point) -> None:
    """Paint an ellipsoid of gas, as far as it lies in the cavity."""
    box = canvas.box(centre - radii, centre + radii)
    x, y, z = canvas.coordinates(box)
    pocket = np.maximum(ellipsoid(x, y, z, centre, radii), site.body.cavity(x, y, z) + 1.5)
    canvas.paint(box, pocket, GAS_HU)
    canvas.mark_injury("Bowel", box, coverage(pocket, canvas.edge_mm))
