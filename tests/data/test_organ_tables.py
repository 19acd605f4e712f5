"""Areas, volumes and boxes of organs are those that a hand counts."""

import numpy as np
import pandas as pd
import pytest

from src.core.files import read_exact, write_table
from src.core.targets import ORGANS
from src.data.organ_tables import (
    ORGAN_TYPES,
    OrganMeasures,
    slice_thickness_mm,
)

Z_MM = np.array([50.0, 48.0, 45.0, 35.0])  # distances of 2, 3 and 10
THICKNESS_MM = [2.0, 2.5, 6.5, 10.0]
MISSING = list(ORGAN_TYPES)[2:]


@pytest.fixture
def masks():
    """Four slices: a liver in three of them, in parts, and a left kidney in the last."""
    masks = np.zeros((4, 20, 30), dtype=np.uint8)
    masks[0, 5:10, 3:7] = ORGANS["liver"]  # 20 pixels
    masks[2, 4:6, 8:11] = ORGANS["liver"]  # 6
    masks[3, 7, 5] = ORGANS["liver"]
    masks[3, 0:20, 20:30] = ORGANS["left kidney"]  # 200, up to the edges of the image
    return masks


def measure(masks):
    measures = OrganMeasures()
    for mask in masks:
        measures.add(mask)
    return measures


def test_slice_thickness_reaches_half_way_to_the_neighbours():
    np.testing.assert_allclose(slice_thickness_mm(Z_MM), THICKNESS_MM)
    np.testing.assert_allclose(slice_thickness_mm(-5.0 * np.arange(7)), np.full(7, 5.0))
    np.testing.assert_allclose(slice_thickness_mm([3, 1]), [2, 2])
    assert slice_thickness_mm([]).tolist() == []


def test_slice_thickness_of_a_single_slice_must_be_given():
    with pytest.raises(ValueError, match="single slice"):
        slice_thickness_mm([7.0])
    assert slice_thickness_mm([7.0], 5).tolist() == [5.0]
    np.testing.assert_allclose(slice_thickness_mm(Z_MM, 5), THICKNESS_MM)  # not used with several slices


@pytest.mark.parametrize("z_mm", [[1, 2, 3], [3, 2, 2], [3, float("nan"), 1]])
def test_slice_thickness_refuses_positions_that_do_not_fall(z_mm):
    with pytest.raises(ValueError, match="must fall from head to feet"):
        slice_thickness_mm(z_mm)


def test_areas_counts_pixels(masks):
    expected = pd.DataFrame(
        {
            "index": [0, 1, 2, 3],
            "z_mm": Z_MM,
            "liver_mm2": [45.0, 0.0, 13.5, 2.25],
            "spleen_mm2": 0.0,
            "left_kidney_mm2": [0.0, 0.0, 0.0, 450.0],
            "right_kidney_mm2": 0.0,
            "bowel_mm2": 0.0,
        }
    )
    pd.testing.assert_frame_equal(measure(masks).areas(1.5, Z_MM), expected)


def test_organs_measures_uneven_slices_and_absent_organs(masks):
    organs = measure(masks).organs(2.0, Z_MM)
    assert organs["organ"].tolist() == list(ORGANS)
    liver, kidney = organs.iloc[0], organs.iloc[2]
    assert liver["volume_ml"] == pytest.approx((20 * 2.0 + 6 * 6.5 + 1 * 10.0) * 4 / 1000)
    assert (liver["first_slice"], liver["last_slice"]) == (0, 3)
    assert (liver["top_z_mm"], liver["bottom_z_mm"]) == (50, 35)
    assert liver[["left", "top", "right", "bottom"]].tolist() == [3, 4, 11, 10]
    assert kidney["volume_ml"] == pytest.approx(200 * 10.0 * 4 / 1000)
    assert (kidney["first_slice"], kidney["last_slice"]) == (3, 3)
    assert (kidney["top_z_mm"], kidney["bottom_z_mm"]) == (35, 35)
    assert kidney[["left", "top", "right", "bottom"]].tolist() == [20, 0, 30, 20]
    absent = organs.iloc[[1, 3, 4]]
    assert absent["volume_ml"].tolist() == [0, 0, 0]
    assert absent[MISSING].isna().all(axis=None)


def organ_of_blocks(*blocks):
    """Measures of a bowel made of blocks of (slices, rows, columns) in 100 slices of 64 px, 5 mm apart."""
    masks = np.zeros((100, 64, 64), dtype=np.uint8)
    for block in blocks:
        masks[block] = ORGANS["bowel"]
    return measure(masks).organs(1.0, -5.0 * np.arange(100)).set_index("organ").loc["bowel"]


BOWEL = np.s_[40:90, 20:50, 10:55]
EXTENT = ["first_slice", "last_slice", "left", "top", "right", "bottom"]


@pytest.mark.parametrize(
    "speck",
    [
        np.s_[5:12, 20:40, 20:60],  # a twelfth of the bowel, in the chest
        np.s_[60:64, 2:6, 60:63],  # beside the body
        np.s_[30:40, 30:33, 30:33],  # a thread upwards
    ],
)
def test_organs_box_leaves_out_specks_far_from_the_organ(speck):
    alone, with_speck = organ_of_blocks(BOWEL), organ_of_blocks(BOWEL, speck)
    assert alone[EXTENT].tolist() == [40, 89, 10, 20, 55, 50]
    assert with_speck[EXTENT].tolist() == alone[EXTENT].tolist()
    assert with_speck["volume_ml"] > alone["volume_ml"]


def test_organs_box_holds_both_parts_of_a_torn_organ():
    torn = organ_of_blocks(np.s_[20:40, 20:50, 10:55], np.s_[60:90, 20:50, 10:40])
    assert torn[EXTENT].tolist() == [20, 89, 10, 20, 55, 50]


def test_organs_measures_boxes_of_a_series_without_pixel_size(masks):
    unknown, known = measure(masks).organs(float("nan"), Z_MM), measure(masks).organs(1.0, Z_MM)
    assert unknown["volume_ml"].isna().any()
    pd.testing.assert_frame_equal(unknown[EXTENT], known[EXTENT])


@pytest.mark.parametrize("shown", ["some organs", "no organ", "one slice", "no slice"])
def test_organ_tables_survive_csv(tmp_path, masks, shown):
    z_mm = Z_MM.astype(int)
    if shown == "no organ":
        masks = np.zeros_like(masks)
    elif shown.endswith("slice"):
        count = ["no slice", "one slice"].index(shown)
        masks, z_mm = masks[:count], z_mm[:count]
    measures = measure(masks)
    organs, areas = measures.organs(1.3, z_mm, single_slice_mm=5), measures.areas(1.3, z_mm)
    assert all(organs[name].dtype == pd.Series(dtype=kind).dtype for name, kind in ORGAN_TYPES.items())
    assert areas.dtypes.astype(str).tolist() == ["int64"] + ["float64"] * 6
    write_table(organs, tmp_path / "organs.csv")
    write_table(areas, tmp_path / "areas.csv")
    back = read_exact(tmp_path / "organs.csv", dtype=dict(ORGAN_TYPES))
    pd.testing.assert_frame_equal(back, organs, check_exact=True)
    if shown != "no slice":  # a header alone has no types
        pd.testing.assert_frame_equal(read_exact(tmp_path / "areas.csv"), areas, check_exact=True)


def test_organ_measures_refuse_other_numbers_of_slices(masks):
    measures = measure(masks)
    with pytest.raises(ValueError, match="shape"):
        measures.add(masks[0, :10])
    for wrong in (Z_MM[:3], Z_MM[:, None], 5.0):
        with pytest.raises(ValueError, match="for 4 slices"):
            measures.areas(1.0, wrong)
        with pytest.raises(ValueError, match="for 4 slices"):
            measures.organs(1.0, wrong)
    with pytest.raises(ValueError, match="single slice"):
        measure(masks[:1]).organs(1.0, Z_MM[:1])
