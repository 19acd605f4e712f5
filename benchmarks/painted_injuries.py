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

TARGETS = ("laceration_low", "laceration_high", "haematoma", "extravasation", "free_gas")
KINDS = ("injury", "untouched", "cyst", "noise", "contrast")
"""Second axis of `images`. The last three are harmless."""
TEST_PATIENTS = ("chaos", "rsna")
"""Patients on whom nothing was tuned: neither sizes here nor any choice of the study."""

LACERATIONS = {  # contrast as a share of the organ's HU
    "laceration_low": LacerationSizes((1, 1), (12, 22), (3.0, 4.5), (-0.45, -0.25), False, (0, 0)),
    "laceration_high": LacerationSizes((2, 3), (25, 45), (4.0, 6.5), (-0.7, -0.5), False, (0, 0)),
}
HAEMATOMA_MM = (7.0, 12.0)
EXTRAVASATION = BleedingSizes((3.0, 5.0), (5.0, 8.0), (1.4, 1.9), (4.0, 8.0))
"""Brightness as a multiple of the organ's HU, because few series show the aorta."""
EXTRAVASATION_DEPTH_MM = (2.0, 15.0)
ENHANCED_HU = 75.0
"""Median of an organ with contrast medium, without which there is no extravasation to see."""
FREE_GAS_MM = ((5.0, 10.0), (3.0, 5.0), (5.0, 10.0))
CYST_HU = (0.0, 12.0)
CONTRAST_HU = (8.0, 20.0)
MORE_NOISE = (1.0, 1.5)

_MIN_PIXELS = 6  # of the injury in its slice
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
    """examples per patient, organ and target"""
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
        for volume in read_volumes(options.ct.absolute(), Path(scratch), options.size, BOXES, options.patients):
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
    """Paint `count` examples of each target into each organ that is large enough for it."""
    for name, mask in masks_of(volume).items():
        place = Place.of(volume, name, mask)
        for target in TARGETS:
            if not place.can_show(target):
                continue
            entropy = [zlib.crc32(text.encode()) for text in (volume.patient, name, target)]
            rng = np.random.default_rng([seed, *entropy])
            found = (place.paint(target, rng) for _ in range(count))
            yield from (example for example in found if example is not None)


@dataclass(frozen=True)
class Place:
    """An organ of a volume, with all that painting in it needs."""

    volume: RealVolume
    """the part of the series around the organ"""
    first: int
    """index of its first slice in the series"""
    name: str
    mask: Array
    body: RealBody
    field: Field
    noise: Noise
    organ_hu: float

    @classmethod
    def of(cls, volume: RealVolume, name: str, mask: Array) -> "Place":
        levels = np.flatnonzero(mask.any(axis=(1, 2)))
        extra = int(np.ceil(_AROUND_MM / volume.spacing_z_mm))
        part = slice(max(0, levels[0] - extra), levels[-1] + 1 + extra)
        mask, wall = mask[part], wall_mask(volume)[part]
        volume = replace(volume, hu=volume.hu[part], labels=volume.labels[part])
        scan = scan_of(volume)
        field = Field.of_mask(mask, scan)
        cavity = field if name == ABDOMEN else Field.of_mask(wall, scan)
        core = ndimage.binary_erosion(mask, np.ones((1, 3, 3))) if name != ABDOMEN else mask
        core = core if core.sum() > 200 else mask
        noise = Noise.measure(volume.hu, core)
        body = RealBody({name: field}, cavity)
        return cls(volume, part.start, name, mask, body, field, noise, float(np.median(volume.hu[core])))

    def can_show(self, target: str) -> bool:
        if target == "free_gas" or self.name == ABDOMEN:
            return target == "free_gas" and self.name == ABDOMEN
        return target != "extravasation" or self.organ_hu > ENHANCED_HU

    def canvas(self, rng: np.random.Generator) -> RealCanvas:
        return RealCanvas(self.volume, scan_of(self.volume), self.body, self.noise.draw(self.mask.shape, rng))

    def paint(self, target: str, rng: np.random.Generator) -> Example | None:
        """Paint one example; None if the injury cannot be seen after several tries."""
        window = WINDOWS["soft"]
        for _ in range(_TRIES):
            canvas = self.canvas(rng)
            self._injure(canvas, target, rng)
            change = np.abs(window.grey(canvas.hu).astype(np.float32) - window.grey(self.volume.hu))
            area = np.count_nonzero(change >= _MIN_GREY, axis=(1, 2))
            area[~self.mask.any(axis=(1, 2))] = 0
            shown = np.flatnonzero(area >= max(_MIN_PIXELS, 0.4 * area.max()))
            if len(shown):
                break
        else:
            return None
        index = int(rng.choice(shown))
        centre, radius_px = find_lesion(change[index])
        injured, untouched = canvas.hu[index], self.volume.hu[index]
        edits = self._harmless(index, centre, radius_px, rng)
        images = np.stack([window.grey(hu) for hu in (injured, untouched, *edits)])
        size = images.shape[-1]
        row, col = (np.array(centre) + 0.5 + rng.uniform(-_JITTER_PX, _JITTER_PX, 2)) / size
        return Example(images, (float(row), float(col)), self.name, target, self.first + index)

    def _injure(self, canvas: RealCanvas, target: str, rng: np.random.Generator) -> None:
        low, high = (corner[2] for corner in self.body.organ_box(self.name))
        site = InjurySite(self.body, (low - SCAN_MARGIN_MM, high + SCAN_MARGIN_MM), rng)
        if target in LACERATIONS:
            sizes = LACERATIONS[target]
            contrast = tuple(share * self.organ_hu for share in sizes.contrast_hu)
            injure_organ(canvas, site, self.name, replace(sizes, contrast_hu=contrast))
        elif target == "haematoma":
            bleed_around(canvas, site, self.name, rng.uniform(*HAEMATOMA_MM))
        elif target == "extravasation":
            centre = point_in_organ(self.body, self.name, rng, EXTRAVASATION_DEPTH_MM)
            bleed_actively(canvas, site, centre, self.organ_hu, 1.0, EXTRAVASATION)
        else:
            centre = point_in_organ(self.body, self.name, rng, (1.0, 6.0))
            free_gas(canvas, site, centre, [rng.uniform(*span) for span in FREE_GAS_MM])

    def _harmless(
        self, index: int, centre: tuple[int, int], radius_px: float, rng: np.random.Generator
    ) -> list[Array]:
        """Return one slice (size, size) of HU with a cyst, with more noise, and with another contrast."""
        canvas = self.canvas(rng)
        x0, y0, _ = canvas.scan.first_voxel_mm
        pixel_mm, z = self.volume.pixel_mm, canvas.z[index : index + 1]
        x, y, z = np.broadcast_arrays(canvas.x[index : index + 1], canvas.y[index : index + 1], z)
        organ = self.field.sample(x, y, z)
        # the nearest place where most of a region of this size lies in the organ
        reach = np.hypot(*(np.indices(organ.shape[1:]) - np.array(centre)[:, None, None])) * pixel_mm
        radius_mm = radius_px * pixel_mm
        cost = reach + 2 * np.maximum(organ[0] + 0.7 * radius_mm, 0)
        row, col = np.unravel_index(np.argmin(cost), cost.shape)
        middle = (x0 + col * pixel_mm, y0 + row * pixel_mm, float(z.flat[0]))
        radii = radius_mm * rng.uniform(0.8, 1.25, 3)
        region = coverage(np.maximum(ellipsoid(x, y, z, middle, radii), organ), canvas.edge_mm)
        box = (slice(index, index + 1), slice(None), slice(None))
        canvas.blend(box, region, rng.uniform(*CYST_HU))
        plain = self.volume.hu[index]
        grain = self.noise.draw((1, *plain.shape), rng)[0]
        noisy = plain + region[0] * grain * np.float32(rng.uniform(*MORE_NOISE))
        shift = rng.uniform(*CONTRAST_HU) * rng.choice([-1, 1])
        return [canvas.hu[index], noisy, plain + coverage(organ[0], canvas.edge_mm) * np.float32(shift)]


def find_lesion(change: Array) -> tuple[tuple[int, int], float]:
    """Find row and column of the strongest change of a slice (grey levels), and the radius of its area."""
    smooth = ndimage.gaussian_filter(change, 2.5)
    row, col = (int(at) for at in np.unravel_index(np.argmax(smooth), smooth.shape))
    near = change[max(0, row - 24) : row + 25, max(0, col - 24) : col + 25]
    area = np.count_nonzero(near >= max(_MIN_GREY, 0.5 * np.quantile(near[near >= _MIN_GREY], 0.9)))
    return (row, col), float(np.clip(np.sqrt(area / np.pi), 1.5, 14))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
