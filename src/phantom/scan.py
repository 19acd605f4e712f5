"""Generate one series from its plan: geometry, anatomy, injuries and noise, as functions of the seed."""

from dataclasses import dataclass

import cv2
import numpy as np

from src.phantom.body import KIDNEYS, ORGAN_LABELS, Body, Enhancement
from src.phantom.bowel import paint_bowel
from src.phantom.cohort import PatientPlan, patient_rng
from src.phantom.injuries import LACERATIONS, InjurySite, extravasate, injure_organ, perforate_bowel
from src.phantom.options import PhantomOptions
from src.phantom.organs_and_vessels import paint_cysts, paint_hepatic_veins, paint_organs, paint_vessels
from src.phantom.shapes import Array
from src.phantom.skeleton import paint_bones, paint_table, paint_trunk
from src.phantom.voxel_grid import Canvas, Scan

HU_RANGE = (-1024, 2000)  # from air outside the circle to dense bone; fits 12 stored bits, signed or not
BLACK_SLICE_RATE = 0.15
CUT_TOP_RATE = 0.1
MIN_INJURY_PIXELS = 4  # per slice for an image-level label
NOISE_HU = (6.0, 11.0)
NOISE_GRAIN_MM = 1.1  # standard deviation of the blur: a soft-tissue kernel
TEXTURE_HU = 4.0
TEXTURE_CELL_MM = 18.0


@dataclass(frozen=True)
class SeriesVolume:
    """Voxels of a series: `hu` int16 and `labels` uint8 (Z, Y, X), slice 0 nearest the head.

    `injured_slices` maps "Active_Extravasation" and "Bowel" to the slices that show them.
    """

    hu: Array
    labels: Array
    scan: Scan
    aortic_hu: float
    incomplete_organ: bool
    injuries: dict[str, Array]

    @property
    def injured_slices(self) -> dict[str, list[int]]:
        touched = {name: mask.sum(axis=(1, 2)) >= MIN_INJURY_PIXELS for name, mask in self.injuries.items()}
        return {name: np.flatnonzero(slices).tolist() for name, slices in touched.items()}


def draw_scan(body: Body, matrix: int, spacing_z_mm: float, rng: np.random.Generator) -> Scan:
    """Draw range, field of view, matrix and position of the patient. Few scans cut the dome of the liver."""
    top = rng.uniform(152, 190) if rng.uniform() > CUT_TOP_RATE else rng.uniform(95, 120)
    length = float(np.clip(top - rng.uniform(-215, -140), 280, 400))
    slices = round(length / spacing_z_mm) + 1
    columns = matrix
    rows = matrix + int(rng.choice([0, 0, 0, -(matrix // 16), matrix // 16]))
    field = max(2 * body.outer_half_width_mm * rng.uniform(1.06, 1.25), 330.0)
    pixel = round(field / columns, 6)
    centre = rng.uniform(-12, 12), rng.uniform(-12, 12)
    middle_y = centre[1] + 12 + rng.uniform(-4, 14)  # room for the table below
    first = (
        round(-pixel * (columns - 1) / 2 + rng.uniform(-6, 6), 4),
        round(middle_y - pixel * (rows - 1) / 2, 4),
        round(float(top), 3),
    )
    roll = np.deg2rad(rng.normal(0, 2.0))
    return Scan((slices, rows, columns), (spacing_z_mm, pixel, pixel), first, centre, float(roll))


def scan_of(plan: PatientPlan, number: int, body: Body, options: PhantomOptions) -> Scan:
    """Return the scan of a patient's series `number` (0 or 1)."""
    rng = patient_rng(options.seed, plan.index, f"scan {number}")
    return draw_scan(body, options.matrix, options.spacing_z_mm, rng)


def body_of(plan: PatientPlan, seed: int) -> Body:
    """Return the patient's body, which is the same in every series."""
    return Body.draw(patient_rng(seed, plan.index, "body"))


def generate_series(plan: PatientPlan, number: int, options: PhantomOptions) -> SeriesVolume:
    """Generate series `number` of a patient: shared anatomy and injuries, with its own phase and noise."""
    seed, phase = options.seed, plan.series[number].phase
    body = body_of(plan, seed)
    scans = [scan_of(plan, k, body, options) for k in range(len(plan.series))]
    ranges = [scan.z_range_mm for scan in scans]
    common = max(low for low, _ in ranges), min(high for _, high in ranges)
    canvas = Canvas(scans[number], body)
    rng = patient_rng(seed, plan.index, f"series {number}")
    enhancement = Enhancement.draw(phase, rng)

    paint_trunk(canvas, body, enhancement)
    paint_bowel(canvas, body, enhancement, patient_rng(seed, plan.index, "bowel"))
    aorta = paint_vessels(canvas, body, enhancement)
    paint_organs(canvas, body, enhancement)
    paint_hepatic_veins(canvas, body, enhancement)
    paint_cysts(canvas, body, patient_rng(seed, plan.index, "cysts"))
    paint_bones(canvas, body, patient_rng(seed, plan.index, "bones"))
    for target, grade in plan.grades.items():
        if grade != "healthy":
            site = InjurySite(body, common, patient_rng(seed, plan.index, f"injury of {target}"))
            injure(canvas, site, target, grade, enhancement)
    paint_table(canvas, body, rng)
    incomplete = _cuts_an_organ(canvas.labels)
    add_noise(canvas.hu, canvas.scan.spacing_mm, rng)
    if rng.uniform() < BLACK_SLICE_RATE:
        _blacken_end(canvas, rng)
    hu = np.clip(np.rint(canvas.hu), *HU_RANGE).astype(np.int16)
    aortic_hu = float(np.median(hu[aorta]))  # the median ignores a blackened slice
    return SeriesVolume(hu, canvas.labels, canvas.scan, aortic_hu, incomplete, canvas.injuries)


def injure(canvas: Canvas, site: InjurySite, target: str, grade: str, enhancement: Enhancement) -> None:
    """Paint the injury of one target. A kidney injury affects one side."""
    if target == "bowel":
        perforate_bowel(canvas, site)
    elif target == "extravasation":
        extravasate(canvas, site, enhancement)
    elif target == "kidney":
        injure_organ(canvas, site, str(site.rng.choice(KIDNEYS)), LACERATIONS[grade])
    else:
        injure_organ(canvas, site, target, LACERATIONS[grade])


def _cuts_an_organ(labels: Array) -> bool:
    """Return whether a solid organ reaches the first or the last slice."""
    solid = [number for name, number in ORGAN_LABELS.items() if name != "bowel"]
    return bool(np.isin(labels[[0, -1]], solid).any())


def _blacken_end(canvas: Canvas, rng: np.random.Generator) -> None:
    """Blank the first or last slice from a random column on, as in an incomplete reconstruction."""
    end = int(rng.choice([0, canvas.scan.shape[0] - 1]))
    column = int(canvas.scan.shape[2] * rng.uniform(0.4, 0.7))
    canvas.hu[end, :, column:] = HU_RANGE[0]
    canvas.labels[end, :, column:] = 0
    for mask in canvas.injuries.values():
        mask[end, :, column:] = False


def add_noise(hu: Array, spacing_mm: tuple[float, float, float], rng: np.random.Generator) -> None:
    """Add correlated noise and slow tissue texture to `hu` (Z, Y, X) in place; air stays nearly clean.

    Noise of filtered back-projection is correlated in the plane and little between slices, and grows towards
    the middle of the body, where fewer photons arrive.
    """
    strength = rng.uniform(*NOISE_HU)
    sigma = NOISE_GRAIN_MM / spacing_mm[2]
    field = _coarse_field(hu.shape, spacing_mm, rng)
    rows, columns = hu.shape[1:]
    v, u = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    centre = (1.25 - 0.6 * np.clip(u * u + v * v, 0, 1)).astype(np.float32)
    gain = np.float32(strength) / _blurred_deviation(sigma)
    for index, plane in enumerate(hu):
        grain = cv2.GaussianBlur(rng.standard_normal(plane.shape, np.float32), (0, 0), sigma)
        tissue = np.clip((plane + 950) / 500, 0.25, 1)
        plane += tissue * (gain * centre * grain + field[index])


def _coarse_field(
    shape: tuple[int, ...], spacing_mm: tuple[float, float, float], rng: np.random.Generator
) -> Array:
    """Smooth random HU (Z, Y, X) with cells of `TEXTURE_CELL_MM`, interpolated from a coarse grid."""
    cells = [int(n * step / TEXTURE_CELL_MM) + 2 for n, step in zip(shape, spacing_mm, strict=True)]
    coarse = rng.standard_normal(cells, np.float32) * np.float32(TEXTURE_HU)
    planes = np.stack([cv2.resize(plane, shape[:0:-1], interpolation=cv2.INTER_CUBIC) for plane in coarse])
    at = np.linspace(0, len(planes) - 1, shape[0])
    below = np.minimum(at.astype(int), len(planes) - 2)
    mix = (at - below).astype(np.float32)[:, None, None]
    return planes[below] * (1 - mix) + planes[below + 1] * mix


def _blurred_deviation(sigma: float) -> float:
    """Standard deviation of white noise of deviation 1 after the blur (its kernel's energy)."""
    size = 2 * int(np.ceil(4 * sigma)) + 1
    kernel = cv2.getGaussianKernel(size, sigma)
    return float((kernel**2).sum())
