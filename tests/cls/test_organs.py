"""Boxes and areas of organs, from true masks and from tables of predicted ones."""

import shutil

import numpy as np
import pandas as pd
import pytest

from src.cls.organs import OrganIndex
from src.core.errors import UserError
from src.core.targets import ORGANS
from src.data.prepared import PreparedDataset
from tests.helpers.seg_files import SIZE, series_ids


def test_organ_index_measures_true_masks(masked, organs):
    key, unknown = series_ids(masked)[0], series_ids(masked)[1]
    assert key in organs and unknown not in organs and organs.box(unknown, "liver") is None
    box = organs.box(key, "kidneys")  # the label maps put a box of 3 rows at 4 x label
    assert (box.first, box.stop) == (3, 9)
    assert (box.top, box.bottom) == (4 * ORGANS["left kidney"], 4 * ORGANS["right kidney"] + 3)
    assert organs.areas[key].shape == (12, 4)
    area = 3 * (SIZE // 4) * float(masked.series.pixel_mm.iloc[0]) ** 2
    assert organs.areas[key][5].tolist() == pytest.approx([area, area, 2 * area, area])
    assert not organs.areas[key][[0, 2, 9, 11]].any()


def test_organ_index_reads_tables_of_predicted_masks(masked, organs, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(masked.folder, folder)
    (folder / "masks").rename(folder / "predicted_masks")
    dataset = PreparedDataset.open(folder)
    with pytest.raises(UserError, match="has no masks, which the options need"):
        OrganIndex.read(dataset)
    with pytest.raises(UserError, match=r"predicted_masks cannot be read .*: run segment.py again"):
        OrganIndex.read(dataset, "predicted")
    key, thing = series_ids(masked)[0], organs.box(series_ids(masked)[0], "liver")
    ids = {"patient_id": key[0], "series_id": key[1]}
    row = {"organ": "liver", "volume_ml": 5.0, "first_slice": 3, "last_slice": 8, "top_z_mm": 0.0}
    row |= {
        "bottom_z_mm": -1.0,
        "left": thing.left,
        "top": thing.top,
        "right": thing.right,
        "bottom": thing.bottom,
    }
    pd.DataFrame([ids | row]).to_csv(folder / "predicted_masks" / "organs.csv", index=False)
    areas = {f"{organ.replace(' ', '_')}_mm2": np.arange(12.0) for organ in ORGANS}
    pd.DataFrame({**ids, "index": range(12), "z_mm": 0.0, **areas}).to_csv(
        folder / "predicted_masks" / "areas.csv", index=False
    )
    read = OrganIndex.read(dataset)
    assert read.box(key, "liver") == thing and read.box(key, "organs") == thing
    assert read.box(key, "spleen") is None
    assert read.areas[key][:, 2].tolist() == [2.0 * index for index in range(12)]
    assert read.digest != organs.digest
