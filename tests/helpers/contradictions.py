"""Kinds of CT series whose header, values or order are wrong, each drawn at random.

CONTRADICTIONS["sign"].write(folder, ct, rng)
"""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from tests.helpers.phantom_ct import N_PATIENTS, Ct, Kind, Rng, phantom_ct, write_ct

MAPS = ("PERFUSION", "IODINE", "RCBF", "CBV", "MTT", "VNC", "MIP", "ZEFF", "SUBTRACTION")


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
