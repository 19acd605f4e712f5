"""CT series as DICOM files that are right, that vary as real ones do, or whose header or order is wrong.

    CONTRADICTIONS["sign"].write(folder, ct, rng)

Every kind writes the slices of a `Ct` into a folder, file `007.dcm` for slice 7 from the head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from src.phantom.cohort import plan_cohort
from src.phantom.options import PhantomOptions
from src.phantom.scan import generate_series
from tests.helpers.dicom_files import write_slice
from tests.helpers.nifti_files import save

Rng = np.random.Generator
UIDS = {"PatientID": "P", "SeriesInstanceUID": "1.2.3"}
N_PATIENTS = 12
MAPS = ("PERFUSION", "IODINE", "RCBF", "CBV", "MTT", "VNC", "MIP", "ZEFF", "SUBTRACTION")


@dataclass(frozen=True)
class Ct:
    """A true CT: `hu` (slices, rows, cols) int16, head first, axis-aligned."""

    hu: np.ndarray
    pixel_mm: float
    spacing_z_mm: float

    def part(self, first: float, last: float) -> "Ct":
        """The slices between two fractions of the length."""
        n = len(self.hu)
        return replace(self, hu=self.hu[round(first * n) : round(last * n)])


@cache
def phantom_ct(index: int) -> Ct:
    """Phantom patient `index`: 35 to 50 slices of 96 columns, liver to pelvis."""
    options = PhantomOptions(
        Path(), patients=N_PATIENTS, test_patients=0, matrix=96, spacing_z_mm=8.0, seed=23
    )
    plan = plan_cohort(options)[index]
    volume = generate_series(plan, 0, options)
    return Ct(volume.hu, volume.scan.spacing_mm[1], volume.scan.spacing_mm[0])


def write_ct(folder: Path, ct: Ct, slices: Mapping[int, Mapping[str, Any]] | None = None, **encoding) -> None:
    """Write every slice as `write_slice` encodes it; `slices` has what differs in some of them.

    There `hu` and `z_mm` replace the true ones.
    """
    for index, true_hu in enumerate(ct.hu):
        own = {**encoding, **(slices or {}).get(index, {})}
        hu, z_mm = own.pop("hu", true_hu), own.pop("z_mm", -index * ct.spacing_z_mm)
        write_slice(
            folder / f"{index:03d}.dcm",
            hu,
            position_mm=(-ct.pixel_mm * ct.hu.shape[2] / 2, -ct.pixel_mm * ct.hu.shape[1] / 2, z_mm),
            pixel_mm=(ct.pixel_mm, ct.pixel_mm),
            instance_number=index + 1,
            **{**UIDS, **own},
        )


@dataclass(frozen=True)
class Kind:
    """A way to write a series."""

    write: Callable[[Path, Ct, Rng], None]
    causes: Sequence[str] = ()
    """Words of which a reason names one at least."""
    same_images: bool = False
    """Whether the images are those of the true CT."""


def moves(slope: float, offset_hu: float) -> bool:
    """Whether a wrong rescale moves air or soft tissue by 150 HU as far as windows can show."""
    return any(abs(max(slope * hu + offset_hu, -1024) - hu) >= 150 for hu in (-1000, 50))


def _draw_rescale(rng: Rng) -> tuple[float, float]:
    while True:
        slope, offset_hu = 1.0, 0.0
        if rng.uniform() < 0.5:
            slope = float(rng.choice([0.1, 0.25, 0.5, 0.7, 1.4, 2, 4, 10, -1]))
        if slope == 1 or rng.uniform() < 0.3:
            offset_hu = float(rng.choice([-2048, -1000, -500, -300, -150, 150, 300, 500, 1000, 1024, 2048]))
        if moves(slope, offset_hu):
            return slope, offset_hu


# Contradictions


def wrong_sign(folder: Path, ct: Ct, rng: Rng) -> None:
    """HU in two's complement that the header calls unsigned."""
    write_ct(folder, ct, bits_stored=int(rng.choice([12, 13, 16])), PixelRepresentation=0)


def wrong_place_of_bits(folder: Path, ct: Ct, rng: Rng) -> None:
    """12 or 13 bits of 16 that are not where HighBit says."""
    bits = int(rng.choice([12, 13]))
    place = 1 << (16 - bits)
    stored = {index: {"hu": (hu.astype(int) + 1024) * place} for index, hu in enumerate(ct.hu)}
    tags = {"BitsStored": bits, "RescaleIntercept": -1024}
    if rng.uniform() < 0.5:
        write_ct(folder, ct, stored, signed=False, HighBit=bits - 1, **tags)
    else:
        write_ct(folder, ct, signed=False, intercept=-1024, HighBit=15, **tags)


def too_few_bits(folder: Path, ct: Ct, rng: Rng) -> None:
    """BitsStored below what the values need."""
    bits = int(rng.choice([8, 9, 10]))
    write_ct(folder, ct, signed=False, intercept=-1024, BitsStored=bits, HighBit=bits - 1)


def wrong_rescale(folder: Path, ct: Ct, rng: Rng) -> None:
    """A slope, or an intercept, that is another one, or missing."""
    signed = rng.uniform() < 0.5
    slope, offset_hu = _draw_rescale(rng)
    if rng.uniform() < 0.3:
        write_ct(folder, ct, signed=signed, intercept=-1024, RescaleIntercept=0)
    else:
        intercept = 0.0 if signed else -1024.0
        tags = {"RescaleSlope": slope, "RescaleIntercept": slope * intercept + offset_hu}
        write_ct(folder, ct, signed=signed, intercept=intercept, **tags)


def rescale_of_some(folder: Path, ct: Ct, rng: Rng) -> None:
    """A share of the slices has another intercept than their values need."""
    wrong = rng.uniform(size=len(ct.hu)) < rng.uniform(0.15, 0.6)
    tags = {"RescaleIntercept": float(rng.choice([0, -1024 + 300, -2048, -1324]))}
    slices = {int(index): tags for index in np.flatnonzero(wrong)}
    write_ct(folder, ct, slices, signed=False, intercept=-1024)


def shuffled(folder: Path, ct: Ct, rng: Rng) -> None:
    """Positions of other slices: of all, or of some."""
    n = len(ct.hu)
    order = np.arange(n)
    some = rng.permutation(n)[: int(n * rng.choice([0.3, 0.5, 1.0]))]
    order[some] = rng.permutation(some)
    write_ct(folder, ct, {index: {"z_mm": -ct.spacing_z_mm * int(order[index])} for index in range(n)})


def folded(folder: Path, ct: Ct, rng: Rng) -> None:
    """Two parts of the scan interleaved, or one of them upside down."""
    n = len(ct.hu)
    half = n // 2
    order = np.argsort(np.concatenate([np.arange(half) * 2, np.arange(n - half) * 2 + 1]))
    if rng.uniform() < 0.5:
        order = np.concatenate([np.arange(half)[::-1], np.arange(half, n)])
    place = np.argsort(order)
    write_ct(folder, ct, {index: {"z_mm": -ct.spacing_z_mm * int(place[index])} for index in range(n)})


def _other(ct: Ct, rng: Rng) -> np.ndarray:
    """Another patient on the grid of `ct`, by slice from the head, as often as needed."""
    others = [phantom_ct(index) for index in range(N_PATIENTS)]
    others = [other for other in others if not np.array_equal(other.hu[0], ct.hu[0])]
    hu = others[int(rng.integers(len(others)))].hu
    rows, cols = ct.hu.shape[1:]
    chosen = np.linspace(0, len(hu) - 1, len(ct.hu)).round().astype(int)
    return np.stack([cv2.resize(hu[index], (cols, rows), interpolation=cv2.INTER_AREA) for index in chosen])


def two_people(folder: Path, ct: Ct, rng: Rng) -> None:
    """Slices of another person among those of the first: every second, or some."""
    other = _other(ct, rng)
    of_other = np.arange(len(ct.hu)) % 2 == 1
    if rng.uniform() < 0.5:
        of_other = rng.uniform(size=len(ct.hu)) < rng.uniform(0.2, 0.5)
    shift = int(rng.choice([-20, 0, 20]))
    slices = {int(index): {"hu": np.roll(other[index], shift, axis=1)} for index in np.flatnonzero(of_other)}
    write_ct(folder, ct, slices)


def blanked(folder: Path, ct: Ct, rng: Rng) -> None:
    """Slices of air, of zeros, or of one value amid the body."""
    share, value = rng.uniform(0.15, 0.6), int(rng.choice([-1024, -1000, 0, 40]))
    inside = rng.uniform(size=len(ct.hu)) < share
    inside[[0, -1]] = False
    slices = {int(index): {"hu": np.full_like(ct.hu[0], value)} for index in np.flatnonzero(inside)}
    write_ct(folder, ct, slices)


def nothing(folder: Path, ct: Ct, rng: Rng) -> None:
    """No body in any slice."""
    write_ct(folder, replace(ct, hu=np.full_like(ct.hu, int(rng.choice([-1024, -1000, 0, 40])))))


def rescaled_values(folder: Path, ct: Ct, rng: Rng) -> None:
    """Values standardised, scaled to a range, or windowed to grey levels."""
    hu = ct.hu.astype(float)
    standard = (hu - hu.mean()) / hu.std()
    unit = np.clip((hu + 1000) / 2000, 0, 1)
    grey = np.clip((hu + 150) / 400, 0, 1)
    choices = (standard, 2 * unit - 1, 1000 * unit, 255 * unit, 255 * grey, 255 * grey - 128, 200 * standard)
    values = np.rint(choices[int(rng.integers(len(choices)))]).astype(np.int16)
    write_ct(folder, replace(ct, hu=values))


def derived_map(folder: Path, ct: Ct, rng: Rng) -> None:
    """A map that is made of a CT, or one that is only called so."""
    name = str(rng.choice(MAPS))
    values = ct.hu if rng.uniform() < 0.3 else np.clip(ct.hu, 0, None) // int(rng.choice([1, 2, 4, 8]))
    image_type = ["DERIVED", str(rng.choice(["PRIMARY", "SECONDARY"])), "AXIAL", name]
    write_ct(folder, replace(ct, hu=values), ImageType=image_type)


def other_unit(folder: Path, ct: Ct, rng: Rng) -> None:
    """Densities or numbers of other units, which RescaleType says."""
    density = np.clip((ct.hu.astype(int) + 1000) // int(rng.choice([1, 2, 10])), 0, None)
    write_ct(folder, replace(ct, hu=density), RescaleType=str(rng.choice(["MGML", "ED", "Z_EFF", "%"])))


def inverted(folder: Path, ct: Ct, rng: Rng) -> None:
    """White where it should be black: MONOCHROME1 of values that are not inverted, or the opposite."""
    if rng.uniform() < 0.5:
        write_ct(
            folder,
            ct,
            signed=False,
            intercept=-1024,
            bits_stored=12,
            photometric="MONOCHROME1",
            inverted=False,
        )
    else:
        write_ct(folder, ct, signed=False, intercept=-1024, bits_stored=12, inverted=True)


def swapped_bytes(folder: Path, ct: Ct, rng: Rng) -> None:
    """Words in the other byte order."""
    swapped = (ct.hu.astype(int) + 1024).astype("<u2").byteswap().astype(int)
    write_ct(folder, replace(ct, hu=swapped), signed=False, RescaleIntercept=-1024)


CONTRADICTIONS = {
    "sign": Kind(wrong_sign, ("PixelRepresentation", "air", "tissue", "no value below")),
    "place of bits": Kind(wrong_place_of_bits, ("HighBit", "BitsStored", "8-bit", "air", "tissue", "value")),
    "too few bits": Kind(too_few_bits, ("BitsStored", "8-bit", "air", "tissue", "value")),
    "rescale": Kind(wrong_rescale, ("RescaleIntercept", "Photometric", "air", "tissue", "value", "body")),
    "rescale of some slices": Kind(
        rescale_of_some, ("Rescale", "rescale", "belong together", "blank", "air", "tissue")
    ),
    "order": Kind(shuffled, ("belong together",)),
    "interleaved": Kind(folded, ("belong together",)),
    "two people": Kind(two_people, ("belong together", "several")),
    "blank slices": Kind(blanked, ("blank", "every pixel", "body")),
    "no body": Kind(nothing, ("no slice shows a body", "every pixel")),
    "other values": Kind(rescaled_values, ("value", "air", "tissue", "HU")),
    "derived map": Kind(derived_map, ("ImageType",)),
    "other unit": Kind(other_unit, ("RescaleType", "not HU")),
    "polarity": Kind(inverted, ("PhotometricInterpretation", "air", "tissue", "value")),
    "byte order": Kind(swapped_bytes, ("air", "tissue", "value", "HU", "body")),
}


# Harmless variations


def encoded(folder: Path, ct: Ct, rng: Rng) -> None:
    """Other bits, sign, intercept and slope for the same HU, with garbage above BitsStored."""
    bits, signed = int(rng.choice([12, 13, 16])), bool(rng.uniform() < 0.5)
    intercept = -1024.0
    if bits == 16:
        intercept = float(rng.choice([-1000, -1024, -8192] if signed else [-1024, -8192, -32768]))
    if signed and bits < 16:
        intercept = float(rng.choice([0, -200]))
    dirty_bits = int(rng.integers(1 << 16)) if rng.uniform() < 0.5 else 0
    shift_hu = min(0.0, float(ct.hu.min()) - intercept) if not signed else 0.0
    write_ct(
        folder,
        ct,
        bits_stored=bits,
        signed=signed,
        intercept=intercept + shift_hu,
        dirty_bits=dirty_bits,
        rle=bool(rng.uniform() < 0.3),
    )


def fine_levels(folder: Path, ct: Ct, rng: Rng) -> None:
    """Slopes below 1, as of 16-bit reconstructions."""
    slope = float(rng.choice([0.25, 0.5]))
    write_ct(folder, ct, slope=slope, intercept=-1024.0, signed=False)


def positions(folder: Path, ct: Ct, rng: Rng) -> None:
    """Feet first, prone, or numbered from the feet."""
    n = len(ct.hu)
    flip = int(rng.choice([1, -1])), int(rng.choice([1, -1]))
    number = rng.uniform() < 0.5
    x_mm, y_mm = (ct.pixel_mm * (size - 1) for size in ct.hu.shape[:0:-1])
    corner = [-ct.pixel_mm * ct.hu.shape[2] / 2, -ct.pixel_mm * ct.hu.shape[1] / 2]
    corner = [corner[0] + (x_mm if flip[1] < 0 else 0), corner[1] + (y_mm if flip[0] < 0 else 0)]
    slices = {
        index: {
            "hu": ct.hu[index, :: flip[0], :: flip[1]],
            "ImagePositionPatient": [*corner, -index * ct.spacing_z_mm],
            "ImageOrientationPatient": [flip[1], 0, 0, 0, flip[0], 0],
            "InstanceNumber": n - index if number else index + 1,
            "PatientPosition": str(rng.choice(["HFS", "FFS"])),
        }
        for index in range(n)
    }
    write_ct(folder, ct, slices)


def monochrome1(folder: Path, ct: Ct, rng: Rng) -> None:
    """Both meanings of MONOCHROME1 that occur."""
    values = {"signed": False, "intercept": -1024, "bits_stored": 12}
    write_ct(folder, ct, photometric="MONOCHROME1", inverted=bool(rng.uniform() < 0.5), **values)


def named(folder: Path, ct: Ct, rng: Rng) -> None:
    """Words in the header that occur in files of plain CT."""
    tags: dict[str, Any] = {}
    if rng.uniform() < 0.5:
        tags["RescaleType"] = str(rng.choice(["HU", "Houndsfield Unit", "Hounsfield", "hu", "US"]))
    image_type = "ORIGINAL PRIMARY AXIAL/ORIGINAL PRIMARY AXIAL CT_SOM5 SPI/DERIVED SECONDARY AXIAL/"
    image_type += "DERIVED PRIMARY MPR/DERIVED SECONDARY REFORMATTED AVERAGE/ORIGINAL PRIMARY AXIAL HELIX"
    tags["ImageType"] = str(rng.choice(image_type.split("/"))).split()
    write_ct(folder, ct, **tags)


def missing_slices(folder: Path, ct: Ct, rng: Rng) -> None:
    """One to three slices that are missing."""
    write_ct(folder, ct)
    for index in rng.permutation(np.arange(1, len(ct.hu) - 1))[: int(rng.integers(1, 4))]:
        (folder / f"{index:03d}.dcm").unlink()


def black_parts(folder: Path, ct: Ct, rng: Rng) -> None:
    """Black columns, and slices at the ends that are partly or wholly black."""
    hu = ct.hu.copy()
    black = int(rng.choice([-1024, -2000, -1000]))
    if rng.uniform() < 0.7:
        for end in rng.choice([0, 1, -1, -2], int(rng.integers(1, 4))):
            hu[end, :, int(hu.shape[2] * rng.choice([0, 0.3, 0.6])) :] = black
    columns = int(rng.integers(1, hu.shape[2] // 12))
    hu[:, :, -columns:] = black
    write_ct(folder, replace(ct, hu=hu))


def padded(folder: Path, ct: Ct, rng: Rng) -> None:
    """Padding outside of the scanner's circle."""
    rows, cols = (np.linspace(-1, 1, size) for size in ct.hu.shape[1:])
    value = int(rng.choice([-2000, -3024, -1024, -2048]))
    hu = np.where(np.hypot(rows[:, None], cols) > 1, value, ct.hu)
    tags = {"padding": value} if rng.uniform() < 0.5 else {}
    write_ct(folder, replace(ct, hu=hu), **tags)


def narrow_field(folder: Path, ct: Ct, rng: Rng) -> None:
    """A field of view inside the body, or that cuts it on one side."""
    rows, cols = ct.hu.shape[1:]
    size = rng.uniform(0.35, 0.6)
    top, left = (int(length * (1 - size) * rng.uniform(0.4, 0.6)) for length in (rows, cols))
    hu = ct.hu[:, top : top + int(rows * size), left : left + int(cols * size)]
    hu = np.stack([cv2.resize(image, (96, 96), interpolation=cv2.INTER_LINEAR) for image in hu])
    write_ct(folder, replace(ct, hu=hu, pixel_mm=ct.pixel_mm * size))


def other_spacing(folder: Path, ct: Ct, rng: Rng) -> None:
    """Thin slices, thick slices, and scans of few slices."""
    how = rng.choice(["thin", "thick", "few"])
    if how == "thin":
        n = len(ct.hu) * 3 - 2
        at = np.arange(n) / 3
        below = np.minimum(at.astype(int) + 1, len(ct.hu) - 1)
        part = (at % 1)[:, None, None]
        hu = (ct.hu[at.astype(int)] * (1 - part) + ct.hu[below] * part).astype(np.int16)
        write_ct(folder, replace(ct, hu=hu[:70], spacing_z_mm=ct.spacing_z_mm / 3))
    elif how == "thick":
        hu = np.stack([ct.hu[i : i + 2].mean(axis=0) for i in range(0, len(ct.hu) - 1, 2)]).astype(np.int16)
        write_ct(folder, replace(ct, hu=hu, spacing_z_mm=2 * ct.spacing_z_mm))
    else:
        first = int(rng.integers(len(ct.hu) - 8))
        write_ct(folder, replace(ct, hu=ct.hu[first : first + int(rng.integers(1, 8))]))


def noisy(folder: Path, ct: Ct, rng: Rng) -> None:
    """Low dose and sharp kernels."""
    noise = rng.normal(scale=rng.uniform(30, 120), size=ct.hu.shape)
    if rng.uniform() < 0.5:
        noise = np.stack([image - 0.5 * cv2.blur(image, (3, 3)) for image in noise])
    write_ct(folder, replace(ct, hu=np.clip(ct.hu + noise, -1024, 3071).astype(np.int16)))


def metal(folder: Path, ct: Ct, rng: Rng) -> None:
    """Metal with streaks in some slices."""
    hu = ct.hu.astype(float)
    n, rows, cols = hu.shape
    first = int(rng.integers(n - 8))
    row, col = (int(size * rng.uniform(0.35, 0.65)) for size in (rows, cols))
    y, x = np.mgrid[:rows, :cols]
    distance, angle = np.hypot(y - row, x - col), np.arctan2(y - row, x - col)
    streaks = 700 * np.cos(rng.integers(3, 9) * angle + rng.uniform(0, 6)) * np.exp(-distance / 12)
    for index in range(first, first + int(rng.integers(3, 9))):
        hu[index] += streaks * (hu[index] > -500)
        hu[index][distance < rng.uniform(1.5, 5)] = 3071
    write_ct(folder, replace(ct, hu=np.clip(hu, -1024, 3071).astype(np.int16)))


def lungs(folder: Path, ct: Ct, rng: Rng) -> None:
    """A chest: two lungs in the trunk, with heart and spine between them."""
    rows, cols = ct.hu.shape[1:]
    hu = ct.hu.copy()
    level = rng.uniform(-900, -750)
    for index, image in enumerate(hu):
        body = np.argwhere(image > -300)
        (top, left), (bottom, right) = body.min(axis=0), body.max(axis=0)
        y, x = np.mgrid[:rows, :cols]
        wide = 0.18 + 0.02 * np.sin(index / 4)
        for side in (0.27, 0.73):
            centre = left + side * (right - left)
            lung = ((x - centre) / (wide * (right - left))) ** 2 + (
                (y - (top + 0.5 * (bottom - top))) / (0.33 * (bottom - top))
            ) ** 2 < 1
            image[lung] = (level + rng.normal(scale=25, size=lung.sum())).astype(np.int16)
    write_ct(folder, replace(ct, hu=hu))


def short(folder: Path, ct: Ct, rng: Rng) -> None:
    """The lower end of the scan alone, or another short part."""
    first = float(rng.choice([0.0, 0.3, 0.6, 0.75]))
    write_ct(folder, ct.part(first, first + 0.25))


def nifti(folder: Path, ct: Ct, rng: Rng) -> None:
    """A NIfTI volume: masked to the body, cropped to it, or whole; integers or fractions."""
    hu = ct.hu.copy()
    body = np.stack([cv2.dilate((image > -300).astype(np.uint8), np.ones((5, 5))) for image in hu]) != 0
    if rng.uniform() < 0.5:
        hu[~body] = int(rng.choice([-1024, -1000, -2000]))
    if rng.uniform() < 0.5:
        _, row, col = (np.flatnonzero(body.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
        hu = hu[:, row[0] : row[-1] + 1, col[0] : col[-1] + 1]
    affine = np.diag([ct.pixel_mm, ct.pixel_mm, -ct.spacing_z_mm, 1.0])
    dtype = rng.choice([np.int16, np.int32, np.float32, np.float64])
    folder.mkdir(parents=True)
    save(folder / "volume.nii.gz", hu.transpose(2, 1, 0), affine, dtype=dtype)


HARMLESS = {
    "encoding": Kind(encoded, same_images=True),
    "fine levels": Kind(fine_levels, same_images=True),
    "positions": Kind(positions, same_images=True),
    "MONOCHROME1": Kind(monochrome1, same_images=True),
    "words": Kind(named, same_images=True),
    "missing slices": Kind(missing_slices),
    "black parts": Kind(black_parts),
    "padding": Kind(padded),
    "field of view": Kind(narrow_field),
    "spacing": Kind(other_spacing),
    "noise": Kind(noisy),
    "metal": Kind(metal),
    "lungs": Kind(lungs),
    "short": Kind(short),
    "NIfTI": Kind(nifti),
}
