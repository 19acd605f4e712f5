"""One patient: trunk and solid organs as signed distances, and the HU of a contrast phase.

Coordinates are millimetres in the patient's own frame: x to the patient's left, y to the back, z to the head;
x = y = 0 is the middle of the abdominal cavity and z = 0 the level of the kidneys (about L2).
"""

from dataclasses import dataclass

import numpy as np

from src.phantom.shapes import Array, ellipsoid, oval_cylinder, smooth_union, smoothstep

ORGAN_LABELS = {"liver": 1, "spleen": 2, "left_kidney": 3, "right_kidney": 4, "bowel": 5}
KIDNEYS = ("left_kidney", "right_kidney")
PHASES = ("arterial", "portal")
WARP_TERMS = 3
WARP_REACH_MM = 9.0  # upper bound of the displacement along one axis: each term moves at most 3 mm


@dataclass(frozen=True)
class Body:
    """Parameters of one patient: sizes in mm, organ variations as factors, waves of the deformation."""

    half_width_mm: float  # of the abdominal cavity
    half_depth_mm: float
    wall_mm: float
    fat_mm: float
    liver_size: float
    spleen_size: float
    kidney_size: float
    kidney_levels_mm: tuple[float, float]  # left, right
    dome_mm: float  # height of the diaphragm
    waves: tuple[
        tuple[tuple[float, ...], ...], ...
    ]  # per axis, per term: amplitude, 3 wave numbers, 3 phases

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Body":
        """Draw a patient, lean to obese. The cavity varies little; most of the difference is fat."""
        obesity = rng.uniform() ** 2
        waves = tuple(
            tuple(
                (rng.uniform(1.0, 3.0), *(2 * np.pi / rng.uniform(80, 220, 3)), *rng.uniform(0, 2 * np.pi, 3))
                for _ in range(WARP_TERMS)
            )
            for _ in range(2)
        )
        return cls(
            half_width_mm=rng.uniform(116, 134) + 8 * obesity,
            half_depth_mm=rng.uniform(74, 88) + 12 * obesity,
            wall_mm=rng.uniform(10, 14),
            fat_mm=7 + 36 * obesity,
            liver_size=rng.uniform(0.92, 1.08),
            spleen_size=rng.uniform(0.85, 1.2),
            kidney_size=rng.uniform(0.9, 1.1),
            kidney_levels_mm=(rng.uniform(2, 16), rng.uniform(-14, 2)),
            dome_mm=rng.uniform(136, 150),
            waves=waves,
        )

    @property
    def back_mm(self) -> float:
        """y of the skin on the back."""
        return self.half_depth_mm + self.wall_mm + 0.8 * self.fat_mm + 24

    @property
    def outer_half_width_mm(self) -> float:
        return self.half_width_mm + self.wall_mm + self.fat_mm

    def warp(self, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
        """Bend x and y smoothly (< `WARP_REACH_MM`) so that every patient has a different outline."""
        warped = []
        for coordinate, terms in zip((x, y), self.waves, strict=True):
            shift = np.float32(0)
            for amplitude, kx, ky, kz, px, py, pz in terms:
                wave = np.sin(y * np.float32(ky) + np.float32(py)) * np.sin(
                    z * np.float32(kz) + np.float32(pz)
                )
                shift = shift + np.float32(amplitude) * np.sin(x * np.float32(kx) + np.float32(px)) * wave
            warped.append(coordinate + shift)
        return warped[0], warped[1]

    def _taper(self, z: Array) -> Array:
        """Width of the trunk at a level: narrow chest, narrow waist, wider hips."""
        chest = 1 - 0.12 * smoothstep(z, 80, 200)
        waist = 1 - 0.04 * np.exp(-(((z + 50) / 45) ** 2))
        hips = 1 + 0.05 * smoothstep(-z, 80, 160)
        return (chest * waist * hips).astype(np.float32)

    def skin(self, x: Array, y: Array, z: Array) -> Array:
        taper = self._taper(z)
        depth = self.half_depth_mm + self.wall_mm + 0.8 * self.fat_mm + 12
        return oval_cylinder(x / taper, y, (0, 12), (self.outer_half_width_mm, depth), square=0.35)

    def muscle_wall(self, x: Array, y: Array, z: Array) -> Array:
        """Outer surface of the wall: thicker at the back, where the erector muscles are."""
        depth = self.half_depth_mm + self.wall_mm + 11
        return oval_cylinder(
            x / self._taper(z), y, (0, 11), (self.half_width_mm + self.wall_mm, depth), square=0.3
        )

    def cavity(self, x: Array, y: Array, z: Array) -> Array:
        return oval_cylinder(
            x / self._taper(z), y, (0, 0), (self.half_width_mm, self.half_depth_mm), square=0.3
        )

    def above_diaphragm(self, x: Array, y: Array, z: Array) -> Array:
        """Height (mm) above the diaphragm: two domes, the right one higher, surrounded by deep recesses."""
        lateral = (np.abs(x) - 0.5 * self.half_width_mm) / (0.55 * self.half_width_mm)
        lateral = np.where(lateral < 0, 0.45, 1.0) * lateral**2
        drop = 62 * lateral + np.where(y > 0, 62, 48) * (y / (0.95 * self.half_depth_mm)) ** 2
        return (z - np.float32(self.dome_mm) + 6 * np.tanh(x / 20) + np.minimum(drop, 125)).astype(np.float32)

    def kidney(self, side: str, x: Array, y: Array, z: Array) -> Array:
        """Kidney beside the spine: upper pole tilted to the middle, hilum concave towards the aorta."""
        sign, level = (
            (1, self.kidney_levels_mm[0]) if side == "left_kidney" else (-1, self.kidney_levels_mm[1])
        )
        x0, y0 = sign * 62.0, self.half_depth_mm - 34
        up = z - level
        xs = x + sign * 0.18 * up
        bean = ellipsoid(xs, y, z, (x0, y0, level), [self.kidney_size * r for r in (28, 26, 52)])
        hilum = ellipsoid(xs, y, z, (x0 - sign * 25, y0 - 8, level), (15, 11, 17))
        return np.maximum(bean, -hilum)

    def renal_sinus(self, side: str, x: Array, y: Array, z: Array) -> Array:
        sign, level = (
            (1, self.kidney_levels_mm[0]) if side == "left_kidney" else (-1, self.kidney_levels_mm[1])
        )
        xs = x + sign * 0.18 * (z - level)
        centre = (sign * 55.0, self.half_depth_mm - 36, level)
        return ellipsoid(xs, y, z, centre, [self.kidney_size * r for r in (11, 9, 26)])

    def liver(self, x: Array, y: Array, z: Array) -> Array:
        """Liver: right lobe under the right dome, left across the midline, concave at kidney and bowel."""
        w, d, s = self.half_width_mm / 125, self.half_depth_mm / 80, self.liver_size
        right = ellipsoid(x, y, z, (-66 * w, 2 * d, 66), (68 * w * s, 86 * d * s, 92 * s))
        left = ellipsoid(x, y, z, (2 * w, -42 * d, 88), (72 * w * s, 36 * d * s, 44 * s))
        lobes = smooth_union(right, left, 16)
        hollow = ellipsoid(x, y, z, (16 * w, 34 * d, 4), (62 * w, 64 * d, 96))
        inside = np.maximum(self.cavity(x, y, z) + 3, self.above_diaphragm(x, y, z) + 3)
        return np.maximum(
            np.maximum(lobes, -hollow), np.maximum(inside, 4 - self.kidney("right_kidney", x, y, z))
        )

    def spleen(self, x: Array, y: Array, z: Array) -> Array:
        """Spleen: a crescent at the back and side, under the left dome."""
        w, d, s = self.half_width_mm, self.half_depth_mm, self.spleen_size
        bulk = ellipsoid(x, y, z, (w - 34, 0.34 * d, 72), (40 * s, 46 * s, 50 * s))
        hollow = ellipsoid(x, y, z, (w - 88, 0.05 * d, 66), (46, 52, 70))
        inside = np.maximum(self.cavity(x, y, z) + 3, self.above_diaphragm(x, y, z) + 3)
        return np.maximum(
            np.maximum(bulk, -hollow), np.maximum(inside, 4 - self.kidney("left_kidney", x, y, z))
        )

    def organ(self, name: str, x: Array, y: Array, z: Array) -> Array:
        """Signed distance (mm) to a solid organ by its label's name."""
        if name in KIDNEYS:
            return self.kidney(name, x, y, z)
        return {"liver": self.liver, "spleen": self.spleen}[name](x, y, z)

    def organ_box(self, name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Corners (mm) of a box that contains the organ."""
        w, d = self.half_width_mm, self.half_depth_mm
        if name == "liver":
            return (-w * 1.05, -d * 1.05, -40.0), (0.75 * w, d * 1.05, self.dome_mm + 10)
        if name == "spleen":
            return (w - 84, -0.4 * d, 4.0), (w * 1.05, d * 1.05, self.dome_mm + 5)
        sign, level = (
            (1, self.kidney_levels_mm[0]) if name == "left_kidney" else (-1, self.kidney_levels_mm[1])
        )
        low, high = sorted((sign * 20.0, sign * 104.0))
        return (low, d - 66, level - 60), (high, d - 2, level + 60)


@dataclass(frozen=True)
class Enhancement:
    """Mean HU of structures with contrast medium, for one series."""

    phase: str
    aorta: float
    cava: float
    portal_vein: float
    hepatic_vein: float
    liver: float
    spleen: float
    renal_cortex: float
    renal_medulla: float
    collecting_system: float
    bowel_wall: float
    muscle: float

    @classmethod
    def draw(cls, phase: str, rng: np.random.Generator) -> "Enhancement":
        """Draw one series. Arterial: bright aorta and renal cortex, pale liver and veins; portal: even."""
        if phase == "arterial":
            aorta = rng.uniform(250, 400)
            liver, spleen, wall = rng.uniform(80, 98), rng.uniform(112, 135), rng.uniform(75, 95)
            cortex, medulla = rng.uniform(175, 205), rng.uniform(100, 130)
            cava, portal, hepatic = rng.uniform(70, 110), rng.uniform(105, 140), liver + rng.uniform(-8, 4)
        else:
            aorta = rng.uniform(130, 190)
            liver, spleen, wall = rng.uniform(98, 118), rng.uniform(110, 128), rng.uniform(80, 105)
            cortex, medulla = rng.uniform(165, 190), rng.uniform(150, 172)
            cava, portal, hepatic = (
                aorta * rng.uniform(0.75, 0.95),
                rng.uniform(145, 175),
                rng.uniform(140, 165),
            )
        # Some portal scans are late enough for contrast in the renal pelvis: bright, but not bleeding.
        excreting = phase == "portal" and rng.uniform() < 0.1
        collecting = rng.uniform(220, 320) if excreting else rng.uniform(0, 15)
        muscle = rng.uniform(50, 62)
        return cls(
            phase, aorta, cava, portal, hepatic, liver, spleen, cortex, medulla, collecting, wall, muscle
        )
