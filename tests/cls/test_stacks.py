"""Stacks of real prepared files: slices, regions, channels, masks."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from src.cls.stacks import StackReader, crop_centre, cut_stack, open_organs, to_channels
from src.cls.views import ORGAN_GROUPS, StackView, plan_stack
from src.core.targets import ORGANS
from src.data.prepared import PreparedDataset
from tests.helpers.seg_files import SIZE, series_ids

VIEW = StackView(windows=("soft", "organ", "wide"), size=SIZE, crop=24, slices=4)


def stack_of(dataset, organs, key, view, offset=0.5):
    return crop_centre(StackReader(dataset, organs).read(key, view, offset), view)


def test_read_takes_the_slices_of_a_region_or_of_a_series_without_masks(masked, organs):
    view = replace(VIEW, z_range="liver")
    known, unknown = series_ids(masked)[:2]
    assert StackReader(masked, organs).read(known, view, 0.5).plan.indices.tolist() == [3, 5, 6, 8]
    assert StackReader(masked, organs).read(unknown, view, 0.5).plan.indices.tolist() == [1, 4, 7, 10]


def test_read_cuts_out_and_resizes_a_region(masked, organs):
    view = replace(VIEW, in_plane="spleen", masks="each", crop=20)
    key = series_ids(masked)[0]
    stack = stack_of(masked, organs, key, view)
    assert stack.images.shape == (4, 20, 20, 3) and stack.organs.shape == (4, 20, 20)
    inside = stack.organs[1] == list(ORGAN_GROUPS).index("spleen") + 1
    # the square is as wide as the box and a margin: the organ reaches nearly from side to side
    assert inside.any(axis=0).mean() > 0.7
    (box,) = organs.boxes_of(key, "spleen")
    whole = masked.read_slices(*key, [4])[0]
    part = whole[box.top : box.bottom, box.left : box.right]
    assert abs(float(stack.images[1][inside].mean()) - float(part.mean())) < 12


def test_to_channels_keeps_the_order_of_neighbours_and_windows(masked):
    view = replace(VIEW, neighbours=3, slices=2, windows=("wide", "soft"))
    key = series_ids(masked)[1]
    stack = stack_of(masked, None, key, view)
    channels = to_channels(stack, view)
    assert channels.shape == (2, 6, 24, 24)
    for place, index in enumerate(stack.plan.indices):
        slices = masked.read_slices(*key, [index - 1, index, index + 1])[:, 4:28, 4:28]
        expected = np.concatenate([one[..., [2, 0]] for one in slices], axis=-1).transpose(2, 0, 1)
        assert (channels[place] == expected).all()


def test_to_channels_adds_organ_masks(masked, organs):
    key = series_ids(masked)[0]
    any_organ, each = (replace(VIEW, masks=masks, z_range="organs") for masks in ("any", "each"))
    one = to_channels(stack_of(masked, organs, key, any_organ), any_organ)
    four = to_channels(stack_of(masked, organs, key, each), each)
    assert one.shape[1] == 4 and four.shape[1] == 7
    assert set(np.unique(four[:, 3:])) == {0, 255}
    assert (four[:, 3:].max(axis=1) == one[:, 3]).all()
    assert (four[:, 3:].sum(axis=(0, 2, 3)) > 0).all()
    unknown = to_channels(stack_of(masked, organs, series_ids(masked)[1], each), each)
    assert not unknown[:, 3:].any()


def test_open_organs_prefers_the_masks_of_training_and_warns_of_others(masked, tmp_path, capsys):
    folder = tmp_path / "set"
    shutil.copytree(masked.folder, folder)
    dataset = PreparedDataset.open(folder)
    known, every = dataset.series.iloc[::2], dataset.series
    trained = {kind: replace(VIEW, z_range="liver", masks_from=kind) for kind in ("true", "predicted")}
    assert open_organs(dataset, [VIEW], every) is None
    assert open_organs(dataset, [VIEW, trained["true"]], known).source == "true"
    assert not capsys.readouterr().err
    assert open_organs(dataset, [trained["predicted"]], known).source == "true"
    assert "models trained with predicted masks get the true ones" in capsys.readouterr().err
    open_organs(dataset, [trained["true"]], every)
    assert "2 of 5 series have no masks of liver" in capsys.readouterr().err


def test_read_cuts_organ_maps_as_images(masked, organs):
    view = replace(VIEW, in_plane="organs", crop=40)
    stack = StackReader(masked, organs).read(series_ids(masked)[0], view, 0.5, with_organs=True)
    (box,) = organs.boxes_of(series_ids(masked)[0], "organs")
    # 19 rows of organs and a margin of a tenth on each side, drawn at 40 px
    rows = np.flatnonzero(stack.organs[1].any(axis=1))
    assert (rows[-1] - rows[0] + 1) / 40 == pytest.approx((box.bottom - box.top) / 23, abs=0.03)
    assert cv2.countNonZero(stack.organs[0]) == 0  # slice 1 shows none


def test_read_shows_each_kidney_in_half_of_the_slices(masked, organs):
    view = replace(VIEW, z_range="each_kidney", in_plane="each_kidney", crop=20, slices=5, neighbours=3)
    key = series_ids(masked)[0]
    stack = StackReader(masked, organs).read(key, view, 0.5, with_organs=True)
    assert stack.plan.indices.tolist() == [4, 6, 8, 4, 7]  # the left kidney's, then the right one's
    left, right = organs.boxes_of(key, "each_kidney")
    assert (left.top, right.top) == (4 * ORGANS["left kidney"], 4 * ORGANS["right kidney"])
    shown = stack.organs == list(ORGAN_GROUPS).index("kidneys") + 1
    for number, box in enumerate((left, left, left, right, right)):
        alone = replace(VIEW, in_plane="kidneys", crop=20, slices=1)
        plan = plan_stack(masked.z_mm(*key), (replace(box, first=stack.plan.indices[number]),), alone, 0.0)
        images = masked.read_slices(*key, plan.wanted)
        expected = cut_stack(plan, images, None, alone, (box,)).images[0]
        middle = stack.plan.places.reshape(5, 3)[number, 1]
        assert (stack.images[middle] == expected).all()
        assert shown[number].any(axis=0).mean() > 0.7  # as wide as the kidney and a margin
    channels = to_channels(stack, view)
    assert channels.shape == (5, 9, 20, 20) and channels.any(axis=(1, 2, 3)).all()


def test_read_shows_one_kidney_in_all_slices_where_masks_lack_the_other(masked, organs):
    key = series_ids(masked)[0]
    left = organs.boxes_of(key, "each_kidney")[:1]
    lacking = replace(organs, boxes={key: {"each_kidney": left}})
    view = replace(VIEW, z_range="each_kidney", in_plane="each_kidney", crop=20)
    stack = StackReader(masked, lacking).read(key, view, 0.5)
    assert stack.plan.indices.tolist() == [3, 5, 6, 8] and stack.plan.parts == (4,)
