"""Solid organs, gallbladder, pancreas, bladder and cysts, and vessels with contrast medium."""

import numpy as np

from src.phantom.body import KIDNEYS, ORGAN_LABELS, Body, Enhancement
from src.phantom.shapes import Array, Point, capsule, ellipsoid, smoothstep, tube
from src.phantom.voxel_grid import Canvas, bounds

AORTA_RADIUS_MM = 10.0
CYST_HU = (0.0, 10.0)
CYST_RADII_MM = {"liver": (4.0, 11.0), "left_kidney": (4.0, 11.0), "right_kidney": (4.0, 11.0)}
CYST_RATE = 0.15  # per organ


def paint_organs(canvas: Canvas, body: Body, enhancement: Enhancement) -> None:
    """Paint pancreas and bladder, then kidneys, spleen, liver and gallbladder over them."""
    _paint_pancreas(canvas, body, enhancement)
    _paint_bladder(canvas, body)
    for side in KIDNEYS:
        _paint_kidney(canvas, body, side, enhancement)
    for name, hu in (("spleen", enhancement.spleen), ("liver", enhancement.liver)):
        box = canvas.box(*body.organ_box(name))
        distance = body.organ(name, *canvas.coordinates(box))
        canvas.paint(box, distance, hu, ORGAN_LABELS[name])
    _paint_gallbladder(canvas, body)


def _paint_kidney(canvas: Canvas, body: Body, side: str, enhancement: Enhancement) -> None:
    """Paint a kidney: cortex around the pyramids of the medulla around the fat and the renal pelvis."""
    box = canvas.box(*body.organ_box(side))
    x, y, z = canvas.coordinates(box)
    distance = body.kidney(side, x, y, z)
    sinus = body.renal_sinus(side, x, y, z)
    pyramids = np.sin(x / 3.6) * np.sin(y / 3.6) + np.sin(z / 5.0)
    medulla = smoothstep(-distance, 5, 9) * smoothstep(pyramids, -0.9, 0.1)
    tissue = enhancement.renal_cortex + medulla * (enhancement.renal_medulla - enhancement.renal_cortex)
    canvas.paint(box, distance, tissue, ORGAN_LABELS[side])
    inside = np.maximum(sinus, distance)
    canvas.paint(box, inside, -40, ORGAN_LABELS[side])
    canvas.paint(box, np.maximum(sinus + 4.5, distance), enhancement.collecting_system, ORGAN_LABELS[side])


def _paint_pancreas(canvas: Canvas, body: Body, enhancement: Enhancement) -> None:
    """Paint the pancreas: head beside the duodenum, body in front of the aorta, tail towards the spleen."""
    y0, w = body.half_depth_mm - 68, body.half_width_mm
    joints = [(-26, y0 + 6, 6), (-10, y0, 20), (24, y0 + 2, 36), (w - 62, 0.2 * body.half_depth_mm, 58)]
    box = canvas.box(*bounds(joints, 14))
    x, y, z = canvas.coordinates(box)
    radii = (14.0, 11.0, 10.0, 7.5)
    parts = [
        capsule(x, y, z, joints[i], joints[i + 1], (radii[i], radii[i + 1])) for i in range(len(joints) - 1)
    ]
    lobules = 1.8 * np.sin(x / 2.6) * np.sin(y / 2.4 + z / 4)
    canvas.paint(box, np.minimum.reduce(parts) + lobules, enhancement.liver - 4)


def _paint_gallbladder(canvas: Canvas, body: Body) -> None:
    centre = (-44 * body.half_width_mm / 125, -0.42 * body.half_depth_mm, 18)
    box = canvas.box(np.subtract(centre, 26), np.add(centre, 26))
    distance = ellipsoid(*canvas.coordinates(box), centre, (12, 15, 24))
    canvas.paint(box, distance, 70)
    canvas.paint(box, distance + 2, 8)


def _paint_bladder(canvas: Canvas, body: Body) -> None:
    centre = (0, -0.25 * body.half_depth_mm, -190)
    box = canvas.box(np.subtract(centre, 50), np.add(centre, 50))
    distance = ellipsoid(*canvas.coordinates(box), centre, (46, 34, 34))
    canvas.paint(box, distance, 45)
    canvas.paint(box, distance + 3, 6)


def paint_cysts(canvas: Canvas, body: Body, rng: np.random.Generator) -> None:
    """Paint simple cysts in some livers and kidneys, not injuries: round, sharp, with the HU of water."""
    for name, (small, large) in CYST_RADII_MM.items():
        has_cyst, radius, hu = rng.uniform() < CYST_RATE, rng.uniform(small, large), rng.uniform(*CYST_HU)
        centre = point_in_organ(body, name, rng, depth_mm=(2.0, 0.8 * radius + 4))
        if has_cyst:
            box = canvas.box(np.subtract(centre, radius), np.add(centre, radius))
            distance = ellipsoid(*canvas.coordinates(box), centre, (radius,) * 3)
            canvas.paint(box, distance, hu, ORGAN_LABELS[name])


def point_in_organ(
    body: Body,
    name: str,
    rng: np.random.Generator,
    depth_mm: tuple[float, float],
    z_limits_mm: tuple[float, float] = (-np.inf, np.inf),
) -> Array:
    """Draw a point (x, y, z in mm) between two depths below an organ's surface.

    The choice uses the organ's formula and not a voxel grid, so it is the same in both series of a patient.
    If the organ is too thin for the requested depth, the deepest of the tested points is used.
    """
    low, high = (np.array(corner) for corner in body.organ_box(name))
    low[2], high[2] = max(low[2], z_limits_mm[0]), min(high[2], z_limits_mm[1])
    points = rng.uniform(low, np.maximum(low, high), (4000, 3)).astype(np.float32)
    depth = -body.organ(name, *points.T)
    fits = np.flatnonzero((depth > depth_mm[0]) & (depth < depth_mm[1]))
    return points[fits[0] if fits.size else np.argmax(depth)]


def aorta_distance(body: Body, x: Array, y: Array, z: Array) -> Array:
    """Signed distance (mm) to the abdominal aorta, above its bifurcation."""
    y0 = body.half_depth_mm - 39
    return capsule(x, y, z, (10, y0, -72), (12, y0, 400), (8.5, AORTA_RADIUS_MM + 2))


def paint_vessels(canvas: Canvas, body: Body, enhancement: Enhancement) -> Array:
    """Paint arteries and veins; return a mask (Z, Y, X) of the aorta's core, in which its HU is measured."""
    d, w = body.half_depth_mm, body.half_width_mm
    front = d - 39
    left, right = body.kidney_levels_mm
    cava, portal, artery = enhancement.cava, enhancement.portal_vein, enhancement.aorta
    confluence = (-6.0, front - 24, 26.0)
    tubes: list[tuple[list[Point], float, float]] = [
        ([(-19, front + 1, -72), (-20, front, 40), (-22, front - 14, body.dome_mm - 14)], 10.5, cava),
        ([(-19, front + 1, -72), (-46, front + 6, -150), (-62, front - 30, -205)], 8.0, cava),
        ([(-19, front + 1, -72), (42, front + 8, -150), (58, front - 28, -205)], 8.0, cava),
        ([(-16, front, right), (-46, front + 4, right)], 4.5, cava),
        ([(-12, front - 8, left), (10, front - 12, left), (46, front + 4, left)], 4.5, cava),
        ([(-4, front - 34, -80), confluence], 5.5, portal),
        ([confluence, (-34, front - 26, 52), (-58, front - 26, 62)], 7.5, portal),
        ([(-58, front - 26, 62), (-92 * w / 125, front - 10, 66)], 4.5, portal),
        ([(-46, front - 26, 58), (-20, front - 52, 84)], 4.0, portal),
        ([confluence, (30, front - 16, 42), (w - 58, 0.25 * d, 66)], 4.0, portal),
        ([(10, front - 8, 22), (8, front - 26, 4), (4, front - 38, -84)], 3.6, artery),
        ([(10, front - 8, 36), (8, front - 22, 40), (-30, front - 34, 50)], 3.2, artery),
        ([(12, front - 2, left + 4), (48, front + 2, left)], 3.0, artery),
        ([(6, front, right + 4), (-46, front + 2, right)], 3.0, artery),
        ([(8, front, -70), (36, front + 4, -140), (56, front - 34, -205)], 6.0, artery),
        ([(12, front, -70), (-36, front + 4, -140), (-54, front - 34, -205)], 6.0, artery),
    ]
    for points, radius, hu in tubes:
        _paint_tube(canvas, points, radius, hu)
    box = canvas.box((-4, front - 16, -90), (28, front + 16, 400))
    distance = aorta_distance(body, *canvas.coordinates(box))
    canvas.paint(box, distance, artery)
    core = np.zeros(canvas.scan.shape, bool)
    core[box] = distance < -3
    return core


def paint_hepatic_veins(canvas: Canvas, body: Body, enhancement: Enhancement) -> None:
    """Paint three veins through the liver to the vena cava, after the liver; labels do not change."""
    join = (-22.0, body.half_depth_mm - 56, body.dome_mm - 26)
    ends = ((-96.0, 20.0, 70.0), (-62.0, -36.0, 62.0), (4.0, -40.0, 84.0))
    for end in ends:
        low, high = bounds([join, end], 5)
        box = canvas.box(low, high)
        x, y, z = canvas.coordinates(box)
        canvas.paint(box, capsule(x, y, z, join, end, (4.5, 2.0)), enhancement.hepatic_vein, label=1)


def _paint_tube(canvas: Canvas, points: list[Point], radius_mm: float, hu: float) -> None:
    low, high = bounds(points, radius_mm)
    box = canvas.box(low, high)
    canvas.paint(box, tube(*canvas.coordinates(box), points, radius_mm), hu)
