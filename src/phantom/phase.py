"""Contrast phases: the HU of vessels and organs in an arterial or a portal venous scan."""

from dataclasses import dataclass

import numpy as np

PHASES = ("arterial", "portal")


@dataclass(frozen=True)
class Enhancement:
    """Mean HU of what contrast medium reaches, for one series."""

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
        # Some portal scans are late enough for contrast in the renal pelvis: bright, yet no bleeding.
        excreting = phase == "portal" and rng.uniform() < 0.1
        collecting = rng.uniform(220, 320) if excreting else rng.uniform(0, 15)
        muscle = rng.uniform(50, 62)
        return cls(
            phase, aorta, cava, portal, hepatic, liver, spleen, cortex, medulla, collecting, wall, muscle
        )
