"""Boxes and areas of organs, from true masks and from tables of predicted ones."""

import shutil

import numpy as np
import pytest

from src.cls.organs import OrganIndex
from src.cls.views import ORGAN_GROUPS
from src.core.errors import UserError
from src.core.targets import ORGANS
from src.data.organ_tables import OrganMeasures
from src.data.prepared import PreparedDataset
from tests.helpers.seg_files import SIZE, series_ids


def test_organ_index_measures_true_masks(masked, organs):
    key, unknown = series_ids(masked)[0], series_ids(masked)[1]
    assert key in organs and unknown not in organs and organs.boxes_of(unknown, "liver") == ()
    (box,) = organs.boxes_of(key, "kidneys")  # the label maps put a box of 3 rows at 4 x label
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
    key, measures, z_mm = series_ids(masked)[0], OrganMeasures(), -5.0 * np.arange(12)
    pixel_mm = float(masked.series.pixel_mm.iloc[0])
    for mask in masked.read_masks(*key, range(12)):
        measures.add(np.where(mask == ORGANS["liver"], mask, np.uint8(0)))
    for name, table in (
        ("organs", measures.organs(pixel_mm, z_mm)),
        ("areas", measures.areas(pixel_mm, z_mm)),
    ):
        table = table.assign(patient_id=key[0], series_id=key[1])
        table.to_csv(folder / "predicted_masks" / f"{name}.csv", index=False)
    read = OrganIndex.read(dataset)
    assert read.boxes_of(key, "liver") == read.boxes_of(key, "organs") == organs.boxes_of(key, "liver") != ()
    assert read.boxes_of(key, "spleen") == ()
    is_liver = np.array([group == "liver" for group in ORGAN_GROUPS])
    np.testing.assert_allclose(read.areas[key], organs.areas[key] * is_liver)
    assert read.digest != organs.digest
