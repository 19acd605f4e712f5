"""The plan of a cohort: patients, their series and their injuries, drawn before any voxel."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from src.core.targets import LABEL_COLUMNS, TARGETS
from src.phantom.body import PHASES
from src.phantom.options import PhantomOptions

STRATIFY_FROM = 20  # number of patients from which on every class with a positive rate occurs
ID_RANGE = (1_000, 65_536)


@dataclass(frozen=True)
class SeriesPlan:
    """One series: its id, contrast phase, and whether a segmentation of it is published."""

    series_id: int
    phase: str
    segmented: bool


@dataclass(frozen=True)
class PatientPlan:
    """One patient. `grades` maps each target to the true class, such as ``{"liver": "low"}``."""

    index: int  # the seed of the patient's anatomy and injuries
    patient_id: int
    split: str  # "train" or "test"
    grades: dict[str, str]
    series: tuple[SeriesPlan, ...]

    def labels(self) -> dict[str, int]:
        """The row of train.csv: `patient_id` and the 14 columns as 0 or 1."""
        row = {"patient_id": self.patient_id} | dict.fromkeys(LABEL_COLUMNS, 0)
        for target, grade in self.grades.items():
            row[f"{target}_{grade}"] = 1
        row["any_injury"] = int(any(grade != "healthy" for grade in self.grades.values()))
        return row


def patient_rng(seed: int, index: int, subject: str) -> np.random.Generator:
    """Create a generator per (seed, patient, subject): draws do not depend on the order of work."""
    return np.random.default_rng([seed, index, *subject.encode()])


def plan_cohort(options: PhantomOptions) -> list[PatientPlan]:
    """Draw all patients. Counts per class are exact (rounded) in train and in test, not random."""
    rng = patient_rng(options.seed, 0, "cohort")
    count = options.patients + options.test_patients
    patient_ids = rng.permutation(np.arange(*ID_RANGE))[:count].tolist()
    series_ids = iter(rng.permutation(np.arange(*ID_RANGE))[: 2 * count].tolist())
    plans: list[PatientPlan] = []
    for split, size in (("train", options.patients), ("test", options.test_patients)):
        grades = {target: draw_grades(target, size, options.rates()[target], rng) for target in TARGETS}
        two_phases = _choose(size, options.two_phase_rate, rng)
        phases = [list(PHASES) if two else [str(rng.choice(PHASES))] for two in two_phases]
        segmented = iter(_choose(sum(map(len, phases)), options.segmentation_rate * (split == "train"), rng))
        for i in range(size):
            plans.append(
                PatientPlan(
                    index=len(plans),
                    patient_id=patient_ids[len(plans)],
                    split=split,
                    grades={target: grades[target][i] for target in TARGETS},
                    series=tuple(SeriesPlan(next(series_ids), phase, next(segmented)) for phase in phases[i]),
                )
            )
    return sorted(plans, key=lambda plan: (plan.split == "test", plan.patient_id))


def draw_grades(target: str, size: int, rates: tuple[float, ...], rng: np.random.Generator) -> list[str]:
    """Assign classes of `target` to `size` patients; `rates` are the shares of injured classes, in order."""
    names = [column.split("_")[1] for column in TARGETS[target]]
    drawn: list[str] = []
    for name, rate in zip(names[1:], rates, strict=True):
        drawn += [name] * _share(size, rate)
    drawn = (drawn + [names[0]] * size)[:size]
    return [drawn[i] for i in rng.permutation(size)]


def label_table(plans: list[PatientPlan], split: str) -> pd.DataFrame:
    """Return the labels of one split in the columns of train.csv."""
    rows = [plan.labels() for plan in plans if plan.split == split]
    return pd.DataFrame(rows, columns=["patient_id", *LABEL_COLUMNS])


def _share(size: int, rate: float) -> int:
    count = int(np.floor(rate * size + 0.5))
    return max(count, 1) if rate > 0 and size >= STRATIFY_FROM else count


def _choose(size: int, rate: float, rng: np.random.Generator) -> list[bool]:
    return (rng.permutation(size) < _share(size, rate)).tolist()
