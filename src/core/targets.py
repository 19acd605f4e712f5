"""Columns, weights and organs of the competition (RSNA 2023 Abdominal Trauma Detection, evaluation page)."""

from types import MappingProxyType

TARGETS = MappingProxyType(
    {
        "bowel": ("bowel_healthy", "bowel_injury"),
        "extravasation": ("extravasation_healthy", "extravasation_injury"),
        "kidney": ("kidney_healthy", "kidney_low", "kidney_high"),
        "liver": ("liver_healthy", "liver_low", "liver_high"),
        "spleen": ("spleen_healthy", "spleen_low", "spleen_high"),
    }
)
"""Each target's columns, healthy first. Probabilities of a target sum to 1 once normalised."""

COLUMNS = tuple(column for columns in TARGETS.values() for column in columns)
"""The 13 columns of a submission, in order."""

INJURIES = tuple(column for columns in TARGETS.values() for column in columns[1:])
"""The 8 injury columns."""

LABEL_COLUMNS = (*COLUMNS, "any_injury")
"""The 14 label columns of train.csv."""

ANY_INJURY_WEIGHT = 6.0

_GRADE_WEIGHTS = {"healthy": 1.0, "low": 2.0, "high": 4.0}

CLASS_WEIGHTS = MappingProxyType(
    {column: _GRADE_WEIGHTS.get(column.split("_")[1], 0.0) for column in COLUMNS}
    | {"bowel_injury": 2.0, "extravasation_injury": 6.0}
)
"""Weight of a patient's log loss, by the column that is true for the patient."""

ORGANS = MappingProxyType({"liver": 1, "spleen": 2, "left kidney": 3, "right kidney": 4, "bowel": 5})
"""Labels of organ masks, as in the competition's segmentations; 0 is background."""
