"""Stomach, colon and small bowel: walls, contents, gas over fluid, and oral contrast in a few patients."""

from dataclasses import dataclass

import numpy as np

from src.phantom.body import ORGAN_LABELS, Body, Enhancement
from src.phantom.shapes import Array, Point, ellipsoid, tube
from src.phantom.voxel_grid import Canvas, bounds

GAS_HU = -920.0
WALL_MM = 2.6
ORAL_CONTRAST_RATE = 0.08
SMALL_BOWEL_LOOPS = (44, 56)


@dataclass(frozen=True)
class Gut:
    """A segment of gut as a tube: course, radius, contents, and the share of the lumen filled with gas."""

    course_mm: list[Point]
    radius_mm: float
    content_hu: float
    gas_share: float
    haustra_mm: float = 0.0  # depth of the folds of the colon


def draw_guts(body: Body, rng: np.random.Generator) -> list[Gut]:
    """Draw small bowel loops in the middle of the belly and the colon as a frame around them."""
    w, d = body.half_width_mm, body.half_depth_mm
    oral = rng.uniform(180, 300) if rng.uniform() < ORAL_CONTRAST_RATE else None
    guts = []
    for _ in range(rng.integers(*SMALL_BOWEL_LOOPS)):
        point = rng.uniform((-0.55 * w, -0.7 * d, -165), (0.55 * w, 0.15 * d, 5))
        course = [point]
        heading = rng.uniform(0, 2 * np.pi)
        for _ in range(5):
            heading += rng.normal(0, 0.9)
            step = np.array([np.cos(heading), 0.7 * np.sin(heading), rng.normal(0, 0.35)]) * rng.uniform(
                14, 24
            )
            point = np.clip(point + step, (-0.68 * w, -0.8 * d, -175), (0.68 * w, 0.2 * d, 12))
            course.append(point)
        content = oral if oral and rng.uniform() < 0.5 else rng.uniform(15, 55)
        gas = rng.uniform(0.2, 0.7) if rng.uniform() < 0.25 else 0.0
        guts.append(Gut(course, rng.uniform(8, 12.5), content, gas))
    sag, front = rng.uniform(-30, 5), -0.72 * d
    right_flexure, left_flexure = rng.uniform(-18, -4), rng.uniform(20, 45)
    right, left = -0.78 * w, 0.8 * w
    frames = (
        ([(0.95 * right, 0.05 * d, -110), (right, 0.2 * d, -60), (right, 0.1 * d, right_flexure)], (19, 25)),
        (
            [
                (right, 0.0, right_flexure),
                (0.5 * right, 0.85 * front, sag),
                (0, front, sag - 8),
                (0.6 * left, 0.85 * front, 0.5 * (sag + left_flexure)),
                (0.92 * left, 0.0, left_flexure),
            ],
            (16, 22),
        ),
        ([(left, 0.1 * d, left_flexure - 6), (1.02 * left, 0.3 * d, -20), (left, 0.2 * d, -110)], (12, 17)),
        (
            [(left, 0.2 * d, -110), (0.4 * left, 0.0, -150), (0, 0.35 * d, -165), (0, 0.55 * d, -215)],
            (12, 17),
        ),
    )
    for course, radii in frames:
        guts.append(
            Gut(course, rng.uniform(*radii), rng.uniform(20, 60), rng.uniform(0.3, 0.8), haustra_mm=3.0)
        )
    return guts


def paint_bowel(canvas: Canvas, body: Body, enhancement: Enhancement, rng: np.random.Generator) -> None:
    """Paint the loops, the colon and the stomach; organs that are painted later cover them."""
    for gut in draw_guts(body, rng):
        _paint_gut(canvas, body, gut, enhancement.bowel_wall)
    _paint_stomach(canvas, body, enhancement.bowel_wall, rng)


def _paint_gut(canvas: Canvas, body: Body, gut: Gut, wall_hu: float) -> None:
    box = canvas.box(*bounds(np.array(gut.course_mm), gut.radius_mm))
    x, y, z = canvas.coordinates(box)
    distance = tube(x, y, z, gut.course_mm, gut.radius_mm)
    if gut.haustra_mm:
        distance = distance + gut.haustra_mm * np.sin(x / 6.5) * np.sin(z / 6.0 + y / 9)
    distance = np.maximum(distance, body.cavity(x, y, z) + 2)
    canvas.paint(box, distance, wall_hu, ORGAN_LABELS["bowel"])
    lumen = distance + WALL_MM
    stool = 22 * np.sin(x / 2.1) * np.sin(y / 2.3 + z / 3) if gut.haustra_mm else np.float32(0)
    canvas.paint(box, lumen, gut.content_hu + stool, ORGAN_LABELS["bowel"])
    if gut.gas_share:
        # Gas rises to the front of each segment; its level varies along the gut, because folds divide the
        # lumen.
        middle = float(np.mean([point[1] for point in gut.course_mm]))
        wave = 0.5 * gut.radius_mm * (np.sin(x / 14.0) + np.sin(z / 17.0))
        level = middle + gut.radius_mm * (2 * gut.gas_share - 1) + wave
        canvas.paint(box, np.maximum(lumen + 0.6, y - level), GAS_HU, ORGAN_LABELS["bowel"])


def _paint_stomach(canvas: Canvas, body: Body, wall_hu: float, rng: np.random.Generator) -> None:
    w, d = body.half_width_mm, body.half_depth_mm
    fundus, antrum = (0.44 * w, -0.05 * d, 92), (0.16 * w, -0.52 * d, 42)
    size, content, level = rng.uniform(0.8, 1.15), rng.uniform(15, 45), rng.uniform(-0.6, -0.3) * d
    box = canvas.box((-0.3 * w, -d, 0), (w, 0.7 * d, 150))
    x, y, z = canvas.coordinates(box)
    upper = ellipsoid(x, y, z, fundus, (32 * size, 36 * size, 40 * size))
    lower = ellipsoid(x, y, z, antrum, (48 * size, 22 * size, 26 * size))
    under = np.maximum(body.cavity(x, y, z) + 3, body.above_diaphragm(x, y, z) + 4)
    distance = np.maximum(np.minimum(upper, lower), under)
    rugae = 1.5 * np.sin(x / 3) * np.sin(z / 4)
    canvas.paint(box, distance, wall_hu)
    canvas.paint(box, distance + 4 + rugae, content)
    canvas.paint(box, np.maximum(distance + 4, y - level), GAS_HU)


def mesentery(body: Body, x: Array, y: Array, z: Array) -> Array:
    """Signed distance (mm) to the region of the mesentery, where vessels reach the small bowel."""
    centre = (0.0, -0.3 * body.half_depth_mm, -60.0)
    return ellipsoid(x, y, z, centre, (0.6 * body.half_width_mm, 0.45 * body.half_depth_mm, 75.0))
