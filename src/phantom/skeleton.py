"""Trunk wall and bones: skin, fat, muscle, spine, ribs, pelvis, and the scanner's table."""

import numpy as np

from src.phantom.body import Body, Enhancement
from src.phantom.shapes import Array, ellipsoid, oval_cylinder, smoothstep
from src.phantom.voxel_grid import FAT_HU, Box, Canvas

VERTEBRA_MM = 34.0
RIB_PITCH_MM = 27.0
LUNG_HU = -850.0
CORTEX_HU, MARROW_HU, DISC_HU = 620.0, 210.0, 75.0


def paint_trunk(canvas: Canvas, body: Body, enhancement: Enhancement) -> None:
    """Paint skin, subcutaneous fat, muscle, the fat of the cavity, and the lungs above the diaphragm."""
    whole: Box = (slice(None),) * 3
    x, y, z = canvas.coordinates(whole)
    skin = body.skin(x, y, z)
    canvas.paint(whole, skin, np.where(skin > -2.2, np.float32(20), np.float32(FAT_HU)))
    muscle = body.muscle_wall(x, y, z)
    # A thin fat plane between the layers of the wall; absent at the back, where the muscle is one mass.
    layered = (np.abs(muscle + 0.5 * body.wall_mm) < 0.9) & (y < 0.5 * body.half_depth_mm)
    canvas.paint(whole, muscle, np.where(layered, np.float32(-30), np.float32(enhancement.muscle)))
    cavity = body.cavity(x, y, z)
    iliacus = 16 * smoothstep(-z, 85, 135) * smoothstep(np.abs(x), 40, 80)
    canvas.paint(whole, cavity + iliacus, FAT_HU - 4)
    _paint_psoas(canvas, body, enhancement)
    top = canvas.box((-200, -200, body.dome_mm - 135), (200, 200, 400))
    x, y, z = canvas.coordinates(top)
    above, cavity = body.above_diaphragm(x, y, z), cavity[top]
    mediastinum = oval_cylinder(x, y, (0, 0.2 * body.half_depth_mm), (30, 0.8 * body.half_depth_mm))
    canvas.paint(top, np.maximum(np.abs(above) - 2, cavity), enhancement.muscle)
    twigs = np.sin(x / 5.3 + 1.9 * np.sin(z / 13)) * np.sin(y / 4.7 + 1.6 * np.sin(x / 17))
    lung = LUNG_HU + 800 * smoothstep(twigs, 0.9, 0.99)
    canvas.paint(top, np.maximum(np.maximum(cavity + 2, 2 - above), -mediastinum), lung)
    heart = ellipsoid(x, y, z, (22, -0.3 * body.half_depth_mm, body.dome_mm + 22), (58, 46, 46))
    canvas.paint(top, np.maximum(np.maximum(heart, cavity + 8), 3 - above), 0.6 * enhancement.aorta + 30)


def _paint_psoas(canvas: Canvas, body: Body, enhancement: Enhancement) -> None:
    """Paint psoas and quadratus lumborum, which bulge into the back of the cavity beside the spine."""
    d = body.half_depth_mm
    for side in (-1, 1):
        box = canvas.box((min(side * 2, side * 90), d - 60, -400), (max(side * 2, side * 90), d + 20, 45))
        x, y, z = canvas.coordinates(box)
        growth = smoothstep(-z, -40, 70)
        psoas = oval_cylinder(x, y, (side * 34, d - 10), (20, 22)) + 14 * (1 - growth)
        quadratus = np.maximum(oval_cylinder(x, y, (side * 62, d + 2), (26, 12)), z - 40)
        canvas.paint(box, np.minimum(psoas, quadratus), enhancement.muscle + 4)


def paint_bones(canvas: Canvas, body: Body, rng: np.random.Generator) -> None:
    """Paint spine, ribs with costal cartilage, sternum, iliac wings, sacrum and femoral heads."""
    offset = rng.uniform(0, VERTEBRA_MM), rng.uniform(0, RIB_PITCH_MM)
    _paint_spine(canvas, body, offset[0])
    _paint_ribs(canvas, body, offset[1])
    _paint_pelvis(canvas, body)


def _bone(depth: Array, cortex_mm: float = 2.5) -> Array:
    """Return HU by depth below a bone's surface: a dense shell around marrow."""
    return CORTEX_HU + (MARROW_HU - CORTEX_HU) * smoothstep(-depth, 0.5 * cortex_mm, 1.8 * cortex_mm)


def _paint_spine(canvas: Canvas, body: Body, offset_mm: float) -> None:
    d = body.half_depth_mm
    box = canvas.box((-46, d - 38, -400), (46, d + 56, 400))
    x, y, z = canvas.coordinates(box)
    phase = np.mod(z + offset_mm, VERTEBRA_MM)
    waist = 2.0 * np.sin(np.pi * phase / VERTEBRA_MM)
    centrum = oval_cylinder(x, y, (0, d - 8), (24, 18)) + waist
    disc = phase < 7
    canvas.paint(box, centrum, np.where(disc, np.float32(DISC_HU), _bone(centrum)))
    arch = np.abs(oval_cylinder(x, y, (0, d + 19), (14, 12))) - 3.5
    process = np.maximum(np.abs(x) - 3.5, np.maximum(d + 28 - y, y - (d + 50)))
    transverse = np.maximum(
        np.abs(y - (d + 13) - 0.15 * np.abs(x)) - 4, np.maximum(np.abs(x) - 38, 12 - np.abs(x))
    )
    level = np.where(phase > 12, np.float32(0), np.float32(4))
    posterior = np.minimum(arch, np.minimum(process + level, transverse + 2 * level))
    canvas.paint(box, posterior, _bone(posterior, 2.0))
    canvas.paint(box, oval_cylinder(x, y, (0, d + 19), (10, 8.5)), 30)


def _paint_ribs(canvas: Canvas, body: Body, offset_mm: float) -> None:
    box = canvas.box((-200, -200, -30), (200, 200, 400))
    x, y, z = canvas.coordinates(box)
    # Ribs slope down towards the front, and the lowest ones do not reach it.
    forward = -y / body.half_depth_mm
    stripe = np.mod(z + 30 * forward + offset_mm, RIB_PITCH_MM) - RIB_PITCH_MM / 2
    depth = body.cavity(x, y, z) - 5
    rib = np.sqrt(depth * depth + (0.75 * stripe) ** 2) - 5.0
    margin = z - 60 * (forward + 0.55)
    rib = np.maximum(rib, np.maximum(-(margin - 5), 30 - np.abs(x)))
    cartilage = forward > 0.62
    canvas.paint(box, rib, np.where(cartilage, np.float32(130), _bone(rib, 1.8)))
    front = -body.half_depth_mm - 5
    sternum = np.maximum(np.maximum(np.abs(x) - 18, np.abs(y - front) - 5), 118 - z)
    canvas.paint(box, sternum, _bone(sternum, 1.8))


def _paint_pelvis(canvas: Canvas, body: Body) -> None:
    w, d = body.half_width_mm, body.half_depth_mm
    box = canvas.box((-200, -200, -500), (200, 200, -70))
    x, y, z = canvas.coordinates(box)
    wing = np.abs(body.cavity(x, y, z) + 4 + 0.12 * (z + 90)) - 5.5
    crest = z + 84 + 0.35 * np.abs(y - 0.3 * d)
    wing = np.maximum(np.maximum(wing, crest), np.maximum(0.38 * w - np.abs(x), -0.45 * d - y))
    canvas.paint(box, wing, _bone(wing))
    spread = 26 + 26 * smoothstep(-z, 105, 135)
    sacrum = np.maximum(np.maximum(np.abs(x) - spread, np.abs(y - d + 2 - 0.05 * np.abs(x)) - 17), z + 108)
    canvas.paint(box, sacrum, _bone(sacrum))
    heads = np.minimum(*(ellipsoid(x, y, z, (s * 0.72 * w, 0, -205), (24, 24, 24)) for s in (-1, 1)))
    canvas.paint(box, heads, _bone(heads, 3))


def paint_table(canvas: Canvas, body: Body, rng: np.random.Generator) -> None:
    """Paint the table below the patient: a thin bright shell over light foam, fixed in the scanner."""
    x, y, _ = canvas.scan.axes_mm()
    x, y = (x[None, :] - rng.uniform(-12, 12)).astype(np.float32), y[:, None].astype(np.float32)
    curve = rng.choice([0.0, 1 / 1400, 1 / 900])
    top = canvas.scan.centre_mm[1] + body.back_mm + rng.uniform(4, 14)
    depth = y - (top - curve * x * x)
    half_width = rng.uniform(190, 260)
    inside = np.abs(x) < half_width
    shell = inside & (((depth > 0) & (depth < 3)) | ((depth > 32) & (depth < 35)))
    foam = inside & (depth >= 3) & (depth <= 32)
    air = canvas.hu < -950
    canvas.hu[air & foam] = -940
    canvas.hu[air & shell] = rng.uniform(-60, 180)
