"""The plan of a cohort follows the rates of its options."""

from pathlib import Path

import pandas as pd

from src.core.targets import LABEL_COLUMNS
from src.phantom.cohort import plan_cohort
from src.phantom.options import PhantomOptions


def test_plan_cohort_follows_the_rates():
    labels = {}
    for patients, rate in ((40, 0.2), (20, 0.01)):
        options = PhantomOptions(
            Path("unused"),
            patients=patients,
            bowel_rate=rate,
            extravasation_rate=rate,
            liver_rates=(rate, rate),
            two_phase_rate=0.35,
        )
        plans = [plan for plan in plan_cohort(options) if plan.split == "train"]
        labels[patients] = pd.DataFrame([plan.labels() for plan in plans])[list(LABEL_COLUMNS)].sum()
        assert sum(len(plan.series) == 2 for plan in plans) == round(0.35 * patients)
    for column in ("bowel_injury", "extravasation_injury", "liver_low", "liver_high"):
        assert labels[40][column] == 8 and labels[20][column] == 1
    assert labels[40]["kidney_low"] == labels[40]["spleen_high"] == 4
