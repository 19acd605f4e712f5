"""Kinds of CT series that vary as real ones do, each drawn at random: nothing in them is wrong.

HARMLESS["encoding"].write(folder, ct, rng)
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.helpers.nifti_files import save
from tests.helpers.phantom_ct import Ct, Kind, Rng, write_ct


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
