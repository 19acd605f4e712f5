"""One series from its plan: scan geometry, anatomy, injuries, noise, all as pure functions of the seed."""

from dataclasses import dataclass

import numpy as np

from src.phantom.body import KIDNEYS, ORGAN_LABELS, Body
from src.phantom.bowel import paint_bowel
from src.phantom.cohort import PatientPlan, stream
from src.phantom.injuries import InjurySite, extravasate, injure_organ, perforate_bowel
from src.phantom.options import PhantomOptions
from src.phantom.phase import Enhancement
from src.phantom.shapes import Array
from src.phantom.skeleton import paint_bones, paint_table, paint_trunk
from src.phantom.solid_organs import paint_cysts, paint_organs
from src.phantom.texture import add_noise
from src.phantom.vessels import paint_hepatic_veins, paint_vessels
from src.phantom.voxel_grid import Canvas, Scan

HU_RANGE = (-1024, 2000)  # air outside the circle up to dense bone; fits 12 stored bits, signed or not
BLACK_SLICE_RATE = 0.15
CUT_TOP_RATE = 0.1
MIN_INJURY_PIXELS = 4  # of a slice, for an image-level label to name it


@dataclass(frozen=True)
class SeriesVolume:
    """A series as it was scanned: `hu` int16 and `labels` uint8 (Z, Y, X), slice 0 nearest the head.

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
    """Draw range, field of view, matrix and where the patient lies. Few scans cut the dome of the liver."""
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
    """The scan of a patient's series `number` (0 or 1)."""
    rng = stream(options.seed, plan.index, f"scan {number}")
    return draw_scan(body, options.matrix, options.spacing_z_mm, rng)


def body_of(plan: PatientPlan, seed: int) -> Body:
    """The patient, the same in every series."""
    return Body.draw(stream(seed, plan.index, "body"))


def generate_series(plan: PatientPlan, number: int, options: PhantomOptions) -> SeriesVolume:
    """Make series `number` of a patient: anatomy and injuries of the patient, its own phase and noise."""
    seed, phase = options.seed, plan.series[number].phase
    body = body_of(plan, seed)
    scans = [scan_of(plan, k, body, options) for k in range(len(plan.series))]
    ranges = [scan.z_range_mm for scan in scans]
    common = max(low for low, _ in ranges), min(high for _, high in ranges)
    canvas = Canvas(scans[number], body)
    rng = stream(seed, plan.index, f"series {number}")
    enhancement = Enhancement.draw(phase, rng)

    paint_trunk(canvas, body, enhancement)
    paint_bowel(canvas, body, enhancement, stream(seed, plan.index, "bowel"))
    aorta = paint_vessels(canvas, body, enhancement)
    paint_organs(canvas, body, enhancement)
    paint_hepatic_veins(canvas, body, enhancement)
    paint_cysts(canvas, body, stream(seed, plan.index, "cysts"))
    paint_bones(canvas, body, stream(seed, plan.index, "bones"))
    for target, grade in plan.grades.items():
        if grade != "healthy":
            site = InjurySite(body, common, stream(seed, plan.index, f"injury of {target}"))
            injure(canvas, site, target, grade, enhancement)
    paint_table(canvas, body, rng)
    incomplete = _cuts_an_organ(canvas.labels)
    add_noise(canvas.hu, canvas.scan.spacing_mm, rng)
    if rng.uniform() < BLACK_SLICE_RATE:
        _blacken_end(canvas, rng)
    hu = np.clip(np.rint(canvas.hu), *HU_RANGE).astype(np.int16)
    aortic_hu = float(np.median(hu[aorta]))  # a blackened slice must not count
    return SeriesVolume(hu, canvas.labels, canvas.scan, aortic_hu, incomplete, canvas.injuries)


def injure(canvas: Canvas, site: InjurySite, target: str, grade: str, enhancement: Enhancement) -> None:
    """Paint the injury of one target. A kidney injury takes one side."""
    if target == "bowel":
        perforate_bowel(canvas, site)
    elif target == "extravasation":
        extravasate(canvas, site, enhancement)
    elif target == "kidney":
        injure_organ(canvas, site, str(site.rng.choice(KIDNEYS)), grade)
    else:
        injure_organ(canvas, site, target, grade)


def _cuts_an_organ(labels: Array) -> bool:
    """True where a solid organ reaches the first or the last slice."""
    solid = [number for name, number in ORGAN_LABELS.items() if name != "bowel"]
    return bool(np.isin(labels[[0, -1]], solid).any())


def _blacken_end(canvas: Canvas, rng: np.random.Generator) -> None:
    """Blank the first or last slice from some column on, as an incomplete reconstruction leaves it."""
    end = int(rng.choice([0, canvas.scan.shape[0] - 1]))
    column = int(canvas.scan.shape[2] * rng.uniform(0.4, 0.7))
    canvas.hu[end, :, column:] = HU_RANGE[0]
    canvas.labels[end, :, column:] = 0
    for mask in canvas.injuries.values():
        mask[end, :, column:] = False
