"""Great vessels and the larger branches: where contrast medium runs before it reaches the organs."""

import numpy as np

from src.phantom.body import Body
from src.phantom.phase import Enhancement
from src.phantom.shapes import Array, Point, capsule, tube
from src.phantom.voxel_grid import Canvas, bounds

AORTA_RADIUS_MM = 10.0


def aorta_distance(body: Body, x: Array, y: Array, z: Array) -> Array:
    """Signed distance (mm) to the abdominal aorta, above its bifurcation."""
    y0 = body.half_depth_mm - 39
    return capsule(x, y, z, (10, y0, -72), (12, y0, 400), (8.5, AORTA_RADIUS_MM + 2))


def paint_vessels(canvas: Canvas, body: Body, enhancement: Enhancement) -> Array:
    """Paint arteries and veins; returns a mask (Z, Y, X) of the core of the aorta, to measure its HU in."""
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
    """Three veins through the liver to the cava, painted after the liver; its label stays."""
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
