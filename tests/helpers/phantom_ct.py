"""CT of the phantom in memory, and as DICOM files: slice 7 from the head is file `007.dcm`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from src.phantom.cohort import plan_cohort
from src.phantom.options import PhantomOptions
from src.phantom.scan import generate_series
from tests.helpers.dicom_files import write_slice

Rng = np.random.Generator
UIDS = {"PatientID": "P", "SeriesInstanceUID": "1.2.3"}
N_PATIENTS = 12


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
