"""Targets of single slices: from patient labels and organ areas, and from image-level labels."""

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from src.cls.organs import Key, OrganIndex
from src.cls.views import ORGAN_GROUPS, TARGET_ORGANS
from src.core.errors import UserError
from src.core.log import warn
from src.core.targets import INJURIES
from src.data.labels import read_image_level_labels
from src.data.prepared import PreparedDataset

_IMAGE_LEVEL = MappingProxyType({"Active_Extravasation": "extravasation_injury", "Bowel": "bowel_injury"})


@dataclass(frozen=True)
class SliceTargets:
    """Injury targets of the slices of every series."""

    labels: pd.DataFrame
    """the 13 columns, indexed by patient_id"""
    organs: OrganIndex | None
    """None: an injury that is not marked in any slice has missing slice targets"""
    marked: dict[Key, dict[str, np.ndarray]]
    """indices of the marked slices, by series and injury"""

    def look_up(self, key: Key, shown: np.ndarray) -> np.ndarray:
        """Return float32 (T, 8) in 0..1 in the order of `INJURIES`; NaN where targets are missing.

        Without the injury, all slices of a patient are 0. With it, if the series has marks of the injury,
        slices are 1 where they or their neighbours are marked and others 0; else each slice has its organ
        area divided by the organ's largest. Extravasation has no organ.

        Args:
            shown: int64 (T, neighbours) slices of the series, each with its neighbours, in the middle.
        """
        targets = np.zeros((len(shown), len(INJURIES)), dtype=np.float32)
        patient = self.labels.loc[key[0]]
        for column, injury in enumerate(INJURIES):
            if patient[injury]:
                targets[:, column] = self._where(key, injury, shown)
        return targets

    def _where(self, key: Key, injury: str, shown: np.ndarray) -> np.ndarray | float:
        marked = self.marked.get(key, {}).get(injury)
        if marked is not None:
            return np.isin(shown, marked).any(axis=1)
        organ = TARGET_ORGANS.get(injury.split("_")[0])
        if organ is None or self.organs is None or key not in self.organs:
            return np.nan
        area = self.organs.areas[key][:, list(ORGAN_GROUPS).index(organ)]
        middle = shown[:, shown.shape[1] // 2]
        return area[middle] / area.max() if area.max() > 0 else np.nan


def read_marked_slices(path: Path, prepared: PreparedDataset) -> dict[Key, dict[str, np.ndarray]]:
    """Read the slices that image_level_labels.csv marks, as indices of the prepared series.

    A warning counts marked images that were not prepared; a series without any other mark is not in the
    result.

    Raises:
        UserError: the table is unusable, or marks no series of the data set.
    """
    table = read_image_level_labels(path)
    table = table.merge(prepared.series[["patient_id", "series_id"]])
    if table.empty:
        raise UserError(f"{path} marks no slice of a series of {prepared.folder}")
    marked: dict[Key, dict[str, np.ndarray]] = {}
    lost: list[str] = []
    for key, rows in table.groupby(["patient_id", "series_id"], sort=False):
        slices = prepared.read_slice_table(*key)
        for name, wanted in rows.groupby("injury_name"):
            found = slices["index"][slices["instance_number"].isin(wanted["instance_number"])].to_numpy()
            if len(found):
                marked.setdefault(key, {})[_IMAGE_LEVEL[name]] = found
            absent = wanted[~wanted["instance_number"].isin(slices["instance_number"])]
            lost += [f"{'/'.join(key)} instance {number}" for number in absent["instance_number"]]
    if lost:
        warn(
            f"{len(lost)} of the {len(table)} marks of {path} are of slices that {prepared.folder} lacks, "
            f"as {lost[0]}"
        )
    return marked
