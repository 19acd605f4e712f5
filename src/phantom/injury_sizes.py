"""Sizes and contrasts of the phantom's injuries: ranges that every patient draws from."""

from dataclasses import dataclass

Span = tuple[float, float]


@dataclass(frozen=True)
class LacerationSizes:
    """Ranges for tears in an organ and the blood around it. Contrast is in HU relative to the organ."""

    count: tuple[int, int]
    length_mm: Span  # as a share of the organ's extent if `relative`
    radius_mm: Span
    contrast_hu: Span
    relative: bool
    haematoma_mm: Span  # maximum thickness of the blood around the organ


@dataclass(frozen=True)
class InjurySizes:
    """Ranges for all injuries. Radii are along x, y and z if there are three."""

    lacerations: dict[str, LacerationSizes]  # by grade
    haematoma_hu: Span
    haematoma_side: Span  # cosines to the bleeding side between which the blood thickens; below -1: all round
    pool_radius_mm: Span  # of active extravasation, in the plane
    pool_half_height_mm: Span
    pool_relative_hu: Span  # as a multiple of the aorta's HU
    clot_mm: Span  # around the pool
    gas_pockets: tuple[int, int]
    gas_radii_mm: tuple[Span, Span, Span]
    fluid_radii_mm: tuple[Span, Span, Span]  # between the loops of the bowel
    fluid_hu: Span


REALISTIC = InjurySizes(
    lacerations={
        "low": LacerationSizes((1, 1), (8, 16), (3.0, 4.0), (-45, -25), False, (0, 0)),
        "high": LacerationSizes((3, 5), (0.5, 0.8), (9.0, 14.0), (-85, -60), True, (24, 36)),
    },
    haematoma_hu=(42, 60),
    haematoma_side=(-0.1, 0.7),
    pool_radius_mm=(15, 22),
    pool_half_height_mm=(28, 40),
    pool_relative_hu=(1.2, 1.6),
    clot_mm=(14, 22),
    gas_pockets=(3, 5),
    gas_radii_mm=((35, 60), (14, 24), (35, 60)),
    fluid_radii_mm=((50, 75), (35, 50), (40, 60)),
    fluid_hu=(10, 22),
)
PLAIN = InjurySizes(
    lacerations={
        "low": LacerationSizes((1, 1), (0.6, 0.8), (10.0, 14.0), (-100, -80), True, (0, 0)),
        "high": LacerationSizes((4, 6), (0.6, 0.9), (10.0, 14.0), (-100, -80), True, (28, 40)),
    },
    haematoma_hu=(60, 75),
    haematoma_side=(-0.6, 0.3),
    pool_radius_mm=(24, 30),
    pool_half_height_mm=(50, 65),
    pool_relative_hu=(2.0, 2.6),
    clot_mm=(14, 22),
    gas_pockets=(5, 7),
    gas_radii_mm=((60, 90), (24, 36), (60, 90)),
    fluid_radii_mm=((60, 85), (40, 55), (50, 70)),
    fluid_hu=(10, 22),
)
INJURY_SIZES = {"realistic": REALISTIC, "plain": PLAIN}
