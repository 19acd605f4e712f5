"""Boxes and areas of the organs of each series, from true or predicted masks."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from src.cls.views import EACH_KIDNEY, ORGAN_GROUPS, Box, StackView
from src.core.errors import UserError
from src.core.files import read_exact
from src.core.log import warn
from src.core.targets import ORGANS
from src.data.organ_tables import AREA_COLUMNS, ORGAN_TYPES, OrganMeasures
from src.data.prepared import PreparedDataset, read_slices

MASK_FOLDERS = {"true": "masks", "predicted": "predicted_masks"}
_IDS = {"patient_id": str, "series_id": str}

GROUP_OF_LABEL = np.zeros(256, dtype=np.uint8)
"""Organ group of each mask label: 0, or 1 + index in `ORGAN_GROUPS`."""
for _number, _organs in enumerate(ORGAN_GROUPS.values(), 1):
    GROUP_OF_LABEL[[ORGANS[organ] for organ in _organs]] = _number

Key = tuple[str, str]
"""patient_id, series_id"""


@dataclass(frozen=True)
class OrganIndex:
    """Boxes and areas of the organs of all series with masks."""

    folder: Path
    """folder of the masks: `<patient_id>/<series_id>/0000.png ...`"""
    size: int
    boxes: dict[Key, dict[str, tuple[Box, ...]]]
    """boxes of each region that the masks contain, by series"""
    areas: dict[Key, np.ndarray]
    """(slices, groups) mm2 in the order of `ORGAN_GROUPS`, by series"""
    digest: str
    source: str
    """kind of masks: true or predicted"""

    @classmethod
    def read(cls, prepared: PreparedDataset, source: str = "auto") -> "OrganIndex":
        """Read the tables of segment.py, or measure the true masks.

        Args:
            source: true, predicted, or auto: predicted masks if segment.py has written them.

        Raises:
            UserError: no such masks, or damaged tables.
        """
        if source == "auto":
            has_predicted = (prepared.folder / MASK_FOLDERS["predicted"] / "organs.csv").is_file()
            source = "predicted" if has_predicted else "true"
        folder = prepared.folder / MASK_FOLDERS[source]
        if not folder.is_dir():
            raise UserError(
                f"{prepared.folder} has no {folder.name}, which the options need: run segment.py first"
            )
        organs, areas = _read_tables(folder) if source == "predicted" else _measure(prepared, folder)
        digest = hashlib.sha256(folder.name.encode())
        for table in (organs, areas):
            digest.update(table.to_csv(index=False).encode())
        boxes = {key: find_regions(rows) for key, rows in organs.groupby(list(_IDS), sort=False)}
        grouped = np.stack(
            [
                areas[[AREA_COLUMNS[organ] for organ in members]].sum(axis=1).to_numpy(np.float32)
                for members in ORGAN_GROUPS.values()
            ],
            axis=1,
        )
        rows_of = areas.groupby(list(_IDS), sort=False).indices
        by_series = {key: grouped[rows] for key, rows in rows_of.items()}
        return cls(folder, prepared.size, boxes, by_series, digest.hexdigest(), source)

    def warn_of_missing(self, series: pd.DataFrame, view: StackView) -> None:
        """Warn of series without masks of the view's regions, of which the whole image is used."""
        keys = list(zip(series["patient_id"], series["series_id"], strict=True))
        missing = [
            key
            for key in keys
            if key not in self or not all(self.boxes_of(key, region) for region in view.regions)
        ]
        if missing:
            what = f" of {' and '.join(view.regions)}" if view.regions else ""
            warn(
                f"{len(missing)} of {len(keys)} series have no masks{what} in {self.folder} and are used "
                f"whole, as {'/'.join(missing[0])}"
            )

    def __contains__(self, key: Key) -> bool:
        return key in self.areas

    def boxes_of(self, key: Key, region: str) -> tuple[Box, ...]:
        """Return the boxes of a region; none if the series has no masks, or they do not contain it."""
        return self.boxes.get(key, {}).get(region, ())

    def read_masks(self, key: Key, indices: Iterable[int]) -> np.ndarray:
        """Read label maps uint8 (T, H, W): 0, or 1 + index in `ORGAN_GROUPS`."""
        stack = read_slices(self.folder.joinpath(*key), list(indices), self.size, 1)[..., 0]
        return cv2.LUT(stack.reshape(len(stack), -1), GROUP_OF_LABEL).reshape(stack.shape)


def find_regions(organs: pd.DataFrame) -> dict[str, tuple[Box, ...]]:
    """Return the boxes of a series' regions, without regions that its masks do not contain.

    Each region has one box, and `EACH_KIDNEY` one of each kidney.

    Args:
        organs: one row per organ, as `OrganMeasures.organs`.
    """
    found = organs[organs["first_slice"].notna()].set_index("organ")
    members = {"organs": tuple(ORGANS), **ORGAN_GROUPS}
    regions = {
        region: (_box_around(found.loc[found.index.isin(names)]),)
        for region, names in members.items()
        if found.index.isin(names).any()
    }
    kidneys = [name for name in ORGAN_GROUPS["kidneys"] if name in found.index]
    if kidneys:
        regions[EACH_KIDNEY] = tuple(_box_around(found.loc[[name]]) for name in kidneys)
    return regions


def _box_around(organs: pd.DataFrame) -> Box:
    low, high = organs.min(), organs.max()
    return Box(
        first=int(low["first_slice"]),
        stop=int(high["last_slice"]) + 1,
        left=int(low["left"]),
        top=int(low["top"]),
        right=int(high["right"]),
        bottom=int(high["bottom"]),
    )


def _read_tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    try:
        organs = read_exact(folder / "organs.csv", dtype=_IDS | dict(ORGAN_TYPES))
        areas = read_exact(folder / "areas.csv", dtype=_IDS)
        _ = areas[list(AREA_COLUMNS.values())]
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the tables of {folder} cannot be read ({reason}): run segment.py again") from None
    return organs, areas


def _measure(prepared: PreparedDataset, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    series = [
        row
        for row in prepared.series.itertuples(index=False)
        if (folder / row.patient_id / row.series_id).is_dir()
    ]
    if not series:
        raise UserError(f"{folder} holds no masks of the series of {prepared.folder}")
    measured = Parallel(n_jobs=-1, prefer="threads")(
        delayed(_measure_series)(prepared, row) for row in series
    )
    organs, areas = zip(*measured, strict=True)
    return pd.concat(organs, ignore_index=True), pd.concat(areas, ignore_index=True)


def _measure_series(prepared: PreparedDataset, row) -> tuple[pd.DataFrame, pd.DataFrame]:
    measures = OrganMeasures()
    for index in range(row.slices):
        measures.add(prepared.read_masks(row.patient_id, row.series_id, [index])[0])
    z_mm = prepared.z_mm(row.patient_id, row.series_id)
    ids = {"patient_id": row.patient_id, "series_id": row.series_id}
    organs = measures.organs(row.pixel_mm, z_mm, row.spacing_z_mm).assign(**ids)
    return organs, measures.areas(row.pixel_mm, z_mm).assign(**ids)
