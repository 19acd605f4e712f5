"""Labels of patients with every class of every target equally likely."""

import numpy as np
import pandas as pd

from src.core.targets import GROUPS


def draw_labels(patients: int, seed: int = 0) -> pd.DataFrame:
    """`patient_id` 0, 1, ... and the label columns."""
    rng = np.random.default_rng(seed)
    columns = {}
    for names in GROUPS.values():
        truth = rng.integers(0, len(names), patients)
        columns |= {name: (truth == index).astype(int) for index, name in enumerate(names)}
    frame = pd.DataFrame(columns)
    healthy = frame[[names[0] for names in GROUPS.values()]]
    return frame.assign(patient_id=[str(i) for i in range(patients)], any_injury=1 - healthy.min(axis=1))
