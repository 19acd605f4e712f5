"""Options of `python -m src.phantom`."""

from dataclasses import dataclass
from pathlib import Path

from src.core.config import check_range


@dataclass(frozen=True)
class PhantomOptions:
    """Options of `python -m src.phantom`; all except `output` and `jobs` determine the bytes written."""

    output: Path
    """Folder to write: new, empty, or started by the same command, which is then completed."""

    patients: int = 40
    """Number of training patients."""

    test_patients: int = 10
    """Number of test patients, whose labels go to test_labels.csv."""

    seed: int = 0
    """Seed of all random draws: the same seed and options give the same bytes."""

    matrix: int = 256
    """Columns of an image; rows vary around it. Doubling it makes everything four times slower."""

    spacing_z_mm: float = 5.0
    """Distance between slices (mm); the scans are 280 to 400 mm long."""

    bowel_rate: float = 0.2
    """Share of patients with a bowel injury."""

    extravasation_rate: float = 0.2
    """Share of patients with active extravasation."""

    kidney_rates: tuple[float, float] = (0.1, 0.1)
    """Shares of patients with a low-grade and a high-grade kidney injury."""

    liver_rates: tuple[float, float] = (0.1, 0.1)
    """Shares of patients with a low-grade and a high-grade liver injury."""

    spleen_rates: tuple[float, float] = (0.1, 0.1)
    """Shares of patients with a low-grade and a high-grade spleen injury."""

    two_phase_rate: float = 0.35
    """Share of patients with two series, one arterial and one portal venous."""

    segmentation_rate: float = 0.3
    """Share of training series with a published segmentation."""

    jobs: int = 2
    """Number of processes; does not affect the result."""

    def __post_init__(self) -> None:
        check_range(self, "patients", "jobs", at_least=1)
        check_range(self, "test_patients", "seed", at_least=0)
        check_range(self, "matrix", at_least=48, at_most=1024)
        check_range(self, "spacing_z_mm", at_least=0.5, at_most=20)
        check_range(self, "two_phase_rate", "segmentation_rate", at_least=0, at_most=1)
        for name, values in self.rates().items():
            if min(values) < 0 or sum(values) > 1:
                raise ValueError(
                    f"the {name} rate(s) must be at least 0 and their sum at most 1, got "
                    f"{' '.join(map(str, values))}"
                )

    def rates(self) -> dict[str, tuple[float, ...]]:
        """Shares of the injured classes, by target."""
        return {
            "bowel": (self.bowel_rate,),
            "extravasation": (self.extravasation_rate,),
            "kidney": self.kidney_rates,
            "liver": self.liver_rates,
            "spleen": self.spleen_rates,
        }
