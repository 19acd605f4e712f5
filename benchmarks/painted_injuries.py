"""Paint injuries of the phantom's painters, and harmless edits, into organs of real CT.

    python benchmarks/painted_injuries.py --ct ../shared/data/ct --output data/painted

Writes one `<patient>.npz` per patient. Each example is one slice, five times (`KINDS`): with the injury,
untouched, and with three harmless edits at the same place: a cyst (water) and more noise, both of the
injury's size, and an organ that is a little brighter or darker. Painting is done in HU; the window `soft`
comes afterwards. Real CT, and what is made from it, is for local use.
"""

import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from real_painting import ABDOMEN, Field, Noise, RealBody, RealCanvas, masks_of, scan_of, wall_mask
from real_volumes import BOXES, RealVolume, read_volumes
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.core.config import check_range, parse_options
from src.core.errors import exit_on_user_error
from src.core.files import atomic_path
from src.core.log import say
from src.ct.windows import WINDOWS
from src.phantom.body import ORGAN_LABELS
from src.phantom.injuries import (
    SCAN_MARGIN_MM,
    BleedingSizes,
    InjurySite,
    LacerationSizes,
    bleed_actively,
    bleed_around,
    free_gas,
    injure_organ,
)
from src.phantom.organs_and_vessels import point_in_organ
from src.phantom.shapes import Array, coverage, ellipsoid
from src.phantom.voxel_grid import Scan

TARGETS = ("laceration_low", "laceration_high", "haematoma", "extravasation", "free_gas")
KINDS = ("injury", "untouched", "cyst", "noise", "contrast")
"""Second axis of `images`. The last three are harmless."""
TEST_PATIENTS = ("chaos", "rsna")
"""Patients on whom nothing was tuned: neither sizes here nor any choice of the study."""

LACERATIONS = {  # contrast as a share of the organ's HU
    "laceration_low": LacerationSizes((1, 1), (16, 30), (4.0, 6.0), (-0.5, -0.3), False, (0, 0)),
    "laceration_high": LacerationSizes((3, 4), (30, 55), (6.0, 9.0), (-0.7, -0.5), False, (0, 0)),
}
HAEMATOMA_MM = (9.0, 16.0)
EXTRAVASATION = BleedingSizes((4.5, 7.5), (7.0, 11.0), (1.0, 1.0), (4.0, 8.0))
EXTRAVASATION_HU = (70.0, 130.0)
"""Brightness above the organ's, also in series without contrast medium, where no reader would find one: the
question is whether features show such a spot."""
EXTRAVASATION_DEPTH_MM = (2.0, 15.0)
RIM_PX = 1.6
"""Pixels at the surface of an organ that are partly fat, which a haematoma replaces, too."""
FREE_GAS_MM = ((8.0, 16.0), (4.0, 7.0), (8.0, 16.0))
CYST_HU = (0.0, 12.0)
CONTRAST_HU = (8.0, 20.0)
MORE_NOISE = (1.5, 2.5)

_MIN_PIXELS = 10  # of the injury in its slice
_MIN_GREY = 4  # change of a pixel that counts
_JITTER_PX = 5
_TRIES = 12
_AROUND_MM = 45.0


@dataclass(frozen=True)
class PaintOptions:
    ct: Path
    """folder with chaos, totalsegmentator, rsna_processed and series"""
    output: Path
    """folder of the examples"""
    patients: tuple[str, ...] = ()
    """only these patients; default: all"""
    examples: int = 16
    """examples per patient, organ and target, twice as many of free gas"""
    size: int = 192
    """side of the slices in pixels"""
    seed: int = 0
    """of all draws, with patient, organ and target"""

    def __post_init__(self) -> None:
        check_range(self, "examples", at_least=1)
        check_range(self, "size", at_least=64)


@dataclass(frozen=True)
class Example:
    """One slice, five times."""

    images: Array
    """uint8 (KINDS, size, size)"""
    centre: tuple[float, float]
    """row and column near the injury's centre, as fractions of the side"""
    organ: str
    target: str
    slice: int


def main(argv: list[str] | None = None) -> None:
    options = parse_options(PaintOptions, argv, prog="painted_injuries.py", description=__doc__)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for volume in read_volumes(
            options.ct.absolute(), Path(scratch), options.size, BOXES, options.patients
        ):
            examples = list(paint_volume(volume, options.examples, options.seed))
            if examples:
                write_examples(options.output / f"{volume.patient}.npz", volume, examples)
            counts = {target: sum(each.target == target for each in examples) for target in TARGETS}
            say(f"{volume.patient}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))


def write_examples(path: Path, volume: RealVolume, examples: list[Example]) -> None:
    """Write arrays: images (G, KINDS, size, size), centre (G, 2), target, organ, slice (G,), pixel_mm."""
    columns = {name: np.array([getattr(each, name) for each in examples]) for name in vars(examples[0])}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, pixel_mm=volume.pixel_mm, **columns)


def paint_volume(volume: RealVolume, count: int, seed: int) -> Iterator[Example]:
    """Paint `count` examples of each target into each organ that can show it."""
    masks = masks_of(volume)
    noise = Noise.of_volume(volume.hu, [mask for name, mask in masks.items() if name != ABDOMEN])
    wall = wall_mask(volume)
    for name, mask in masks.items():
        place = Place.of(volume, name, mask, wall, noise)
        for target in TARGETS:
            if place.can_show(target):
                entropy = [zlib.crc32(text.encode()) for text in (volume.patient, name, target)]
                rng = np.random.default_rng([seed, *entropy])
                number = 2 * count if name == ABDOMEN else count  # the one place of its target
                found = (place.paint(target, rng) for _ in range(number))
                yield from (example for example in found if example is not None)


@dataclass(frozen=True)
class Place:
    """An organ of a volume, with all that painting in it needs; arrays are of the slices around it."""

    name: str
    first: int
    """index of the first of these slices in the series"""
    hu: Array
    labels: Array
    mask: Array
    scan: Scan
    body: RealBody
    field: Field
    noise: Noise
    grain: Array
    organ_hu: float
    is_whole: bool

    @classmethod
    def of(cls, volume: RealVolume, name: str, mask: Array, wall: Array, noise: Noise) -> "Place":
        levels = np.flatnonzero(mask.any(axis=(1, 2)))
        extra = int(np.ceil(_AROUND_MM / volume.spacing_z_mm))
        part = slice(max(0, levels[0] - extra), levels[-1] + 1 + extra)
        hu, mask = volume.hu[part], mask[part]
        scan = scan_of(replace(volume, hu=hu))
        field = Field.of_mask(mask, scan)
        return cls(
            name,
            part.start,
            hu,
            volume.labels[part],
            mask,
            scan,
            RealBody({name: field}, field if name == ABDOMEN else Field.of_mask(wall[part], scan)),
            field,
            noise,
            noise.draw(hu.shape, np.random.default_rng(zlib.crc32(f"{volume.patient} {name}".encode()))),
            float(np.median(hu[mask])),
            name in volume.whole,
        )

    def can_show(self, target: str) -> bool:
        if target == "free_gas" or self.name == ABDOMEN:
            return target == "free_gas" and self.name == ABDOMEN
        return target != "haematoma" or self.is_whole  # it lies on the organ's surface

    def paint(self, target: str, rng: np.random.Generator) -> Example | None:
        """Paint one example; None if the injury cannot be seen after several tries."""
        window, levels = WINDOWS["soft"], self.mask.any(axis=(1, 2))
        low, high = window.lowest_hu, window.lowest_hu + window.width_hu
        before = np.clip(self.hu[levels], low, high)
        for _ in range(_TRIES):
            painted = self._injure(target, rng)
            change = np.abs(np.clip(painted[levels], low, high) - before) * np.float32(255 / window.width_hu)
            area = np.count_nonzero(change >= _MIN_GREY, axis=(1, 2))
            shown = np.flatnonzero(area >= max(_MIN_PIXELS, 0.4 * area.max()))
            if len(shown):
                break
        else:
            return None
        chosen = int(rng.choice(shown))
        index = int(np.flatnonzero(levels)[chosen])
        centre, radius_px = find_lesion(change[chosen])
        edits = self._harmless(index, centre, radius_px, rng)
        images = np.stack([window.grey(hu) for hu in (painted[index], self.hu[index], *edits)])
        row, col = (np.array(centre) + 0.5 + rng.uniform(-_JITTER_PX, _JITTER_PX, 2)) / images.shape[-1]
        return Example(images, (float(row), float(col)), self.name, target, self.first + index)

    def _injure(self, target: str, rng: np.random.Generator) -> Array:
        """Return HU (Z, Y, X) with an injury."""
        body, labels = self.body, self.labels
        if target == "haematoma":
            grown = self.field.grown(RIM_PX * self.scan.spacing_mm[2])
            body = body.with_organ(self.name, grown)
            labels = grown.fill(labels, ORGAN_LABELS[self.name])
        grain = np.roll(self.grain, rng.integers(self.grain.shape), axis=(0, 1, 2))
        canvas = RealCanvas(self.hu, labels, self.scan, body, grain)
        low, high = (corner[2] for corner in body.organ_box(self.name))
        site = InjurySite(body, (low - SCAN_MARGIN_MM, high + SCAN_MARGIN_MM), rng)
        if target in LACERATIONS:
            sizes = LACERATIONS[target]
            contrast = tuple(share * self.organ_hu for share in sizes.contrast_hu)
            injure_organ(canvas, site, self.name, replace(sizes, contrast_hu=contrast))
        elif target == "haematoma":
            bleed_around(canvas, site, self.name, rng.uniform(*HAEMATOMA_MM))
            return np.where(_thick(canvas.hu != self.hu), canvas.hu, self.hu)
        elif target == "extravasation":
            centre = point_in_organ(body, self.name, rng, EXTRAVASATION_DEPTH_MM)
            blood_hu = self.organ_hu + rng.uniform(*EXTRAVASATION_HU)
            bleed_actively(canvas, site, centre, blood_hu, 1.0, EXTRAVASATION)
        else:
            centre = point_in_organ(body, self.name, rng, (2.0, 12.0))
            free_gas(canvas, site, centre, [rng.uniform(*span) for span in FREE_GAS_MM])
        return canvas.hu

    def _harmless(
        self, index: int, centre: tuple[int, int], radius_px: float, rng: np.random.Generator
    ) -> list[Array]:
        """Return one slice (size, size) of HU with a cyst, with more noise, and with another contrast."""
        plain, pixel_mm = self.hu[index], self.scan.spacing_mm[2]
        edge_mm = 1.2 * pixel_mm  # as of a canvas
        x, y, z = (axis.astype(np.float32) for axis in self.scan.axes_mm())
        x, y, z = np.broadcast_arrays(x, y[:, None], z[index])
        organ = self.field.sample(x, y, z)
        # the nearest place where most of a region of this size lies in the organ
        reach = np.hypot(*(np.indices(organ.shape) - np.array(centre)[:, None, None])) * pixel_mm
        radius_mm = radius_px * pixel_mm
        row, col = np.unravel_index(
            np.argmin(reach + 2 * np.maximum(organ + 0.7 * radius_mm, 0)), organ.shape
        )
        shift = rng.uniform(-0.45, 0.45, 2) * pixel_mm
        middle = (x[row, col] + shift[0], y[row, col] + shift[1], z[row, col])
        radii = radius_mm * rng.uniform(0.8, 1.25, 3)
        region = coverage(np.maximum(ellipsoid(x, y, z, middle, radii), organ), edge_mm)
        grain = self.noise.draw((2, *plain.shape), rng)
        cyst = plain + region * (np.float32(rng.uniform(*CYST_HU)) + grain[0] - plain)
        noisy = plain + region * grain[1] * np.float32(rng.uniform(*MORE_NOISE))
        contrast = np.float32(rng.uniform(*CONTRAST_HU) * rng.choice([-1, 1]))
        return [cyst, noisy, plain + coverage(organ, edge_mm) * contrast]


def _thick(changed: Array) -> Array:
    """Return the parts (Z, Y, X) of a change that are at least 3 pixels wide, with the pixels next to them.

    The crescent's painter also draws a faint line where its thickness is 0.
    """
    square = np.ones((1, 3, 3), bool)
    return changed & ndimage.binary_dilation(ndimage.binary_opening(changed, square), square)


def find_lesion(change: Array) -> tuple[tuple[int, int], float]:
    """Find row and column of the strongest change of a slice (grey levels), and the radius of its area."""
    smooth = ndimage.gaussian_filter(change, 2.5)
    row, col = (int(at) for at in np.unravel_index(np.argmax(smooth), smooth.shape))
    near = change[max(0, row - 24) : row + 25, max(0, col - 24) : col + 25]
    area = np.count_nonzero(near >= max(_MIN_GREY, 0.5 * np.quantile(near[near >= _MIN_GREY], 0.9)))
    return (row, col), float(np.clip(np.sqrt(area / np.pi), 1.5, 9))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
