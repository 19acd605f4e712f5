"""Stacks from real prepared files: organs by mask, slices by region, channels, targets of slices."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest

from src.cls.dataset import StackDataset
from src.cls.order import Draw
from src.cls.organs import OrganIndex
from src.cls.slice_targets import SliceTargets, read_marked_slices
from src.cls.stacks import StackReader, crop_centre, open_organs, to_channels
from src.cls.views import ORGAN_GROUPS, StackView
from src.core.errors import UserError
from src.core.targets import INJURIES, LABEL_COLUMNS, ORGANS
from src.data.packed import PackedSlices
from src.data.png import read_png
from src.data.prepared import PreparedDataset, image_folder, slice_name
from src.nn.augmentation import Augmentation
from tests.helpers.seg_files import SIZE, series_ids, write_masked

VIEW = StackView(windows=("soft", "organ", "wide"), size=SIZE, crop=24, slices=4)
STILL = Augmentation(flip=0, rotate90=0, affine=0, gamma=0, dropout=0)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A prepared set of 12 slices a series, organs in slices 3 to 8 of every second one."""
    dataset = PreparedDataset.open(write_masked(tmp_path_factory.mktemp("stacks") / "set"))
    for ids in series_ids(dataset)[::2]:
        masks = [dataset.read_masks(*ids, [0])[0] * (3 <= index < 9) for index in range(12)]
        dataset.write_masks(*ids, masks)
    return dataset


@pytest.fixture(scope="module")
def organs(masked):
    return OrganIndex.read(masked)


@pytest.fixture
def labels(masked):
    """All patients have every injury but the first, who has none."""
    patients = masked.series.patient_id.unique()
    table = pd.DataFrame(1, index=patients, columns=list(LABEL_COLUMNS))
    table.iloc[0] = 0
    return table


def stack_of(dataset, organs, key, view, offset=0.5):
    return crop_centre(StackReader(dataset, organs).read(key, view, offset), view)


def test_true_masks_are_measured(masked, organs):
    key, unknown = series_ids(masked)[0], series_ids(masked)[1]
    assert key in organs and unknown not in organs and organs.box(unknown, "liver") is None
    box = organs.box(key, "kidneys")  # the label maps put a box of 3 rows at 4 x label
    assert (box.first, box.stop) == (3, 9)
    assert (box.top, box.bottom) == (4 * ORGANS["left kidney"], 4 * ORGANS["right kidney"] + 3)
    assert organs.areas[key].shape == (12, 4)
    area = 3 * (SIZE // 4) * float(masked.series.pixel_mm.iloc[0]) ** 2
    assert organs.areas[key][5].tolist() == pytest.approx([area, area, 2 * area, area])
    assert not organs.areas[key][[0, 2, 9, 11]].any()


def test_tables_of_predicted_masks_are_read(masked, organs, tmp_path):
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


def test_a_region_chooses_slices_and_the_whole_series_stands_in_for_it(masked, organs):
    view = replace(VIEW, z_range="liver")
    known, unknown = series_ids(masked)[:2]
    assert StackReader(masked, organs).read(known, view, 0.5).plan.indices.tolist() == [3, 5, 6, 8]
    assert StackReader(masked, organs).read(unknown, view, 0.5).plan.indices.tolist() == [1, 4, 7, 10]


def test_a_region_is_cut_out_and_resized(masked, organs):
    view = replace(VIEW, in_plane="spleen", masks="each", crop=20)
    key = series_ids(masked)[0]
    stack = stack_of(masked, organs, key, view)
    assert stack.images.shape == (4, 20, 20, 3) and stack.organs.shape == (4, 20, 20)
    inside = stack.organs[1] == list(ORGAN_GROUPS).index("spleen") + 1
    # the square is as wide as the box and a margin: the organ reaches nearly from side to side
    assert inside.any(axis=0).mean() > 0.7
    box = organs.box(key, "spleen")
    whole = masked.read_slices(*key, [4])[0]
    part = whole[box.top : box.bottom, box.left : box.right]
    assert abs(float(stack.images[1][inside].mean()) - float(part.mean())) < 12


def test_neighbours_become_channels_in_order(masked):
    view = replace(VIEW, neighbours=3, slices=2, windows=("wide", "soft"))
    key = series_ids(masked)[1]
    stack = stack_of(masked, None, key, view)
    channels = to_channels(stack, view)
    assert channels.shape == (2, 6, 24, 24)
    for place, index in enumerate(stack.plan.indices):
        slices = masked.read_slices(*key, [index - 1, index, index + 1])[:, 4:28, 4:28]
        expected = np.concatenate([one[..., [2, 0]] for one in slices], axis=-1).transpose(2, 0, 1)
        assert (channels[place] == expected).all()


def test_mask_channels_show_the_organs(masked, organs):
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


def test_padding_is_black_and_said(masked):
    view = replace(VIEW, spacing_mm=40.0)  # of a series of 55 mm
    sample = StackDataset(masked, masked.series, view)[0]
    assert sample.padding.tolist() == [False, False, True, True]
    assert sample.images[:2].any() and not sample.images[2:].any()


def test_prediction_is_fixed_and_training_moves_with_seed_epoch_and_index(masked):
    view = replace(VIEW, slices=5)
    fixed = StackDataset(masked, masked.series, view)
    assert all((a == b).all() for a, b in zip(fixed[1], fixed[1], strict=True))
    assert (StackDataset(masked, masked.series, view, offset=0.1)[1].images != fixed[1].images).any()

    def images(seed: int, epoch: int):
        stacks = StackDataset(masked, masked.series, view, augmentation=Augmentation(), seed=seed)
        return stacks[Draw(epoch, 1)].images

    assert (images(seed=1, epoch=2) == images(seed=1, epoch=2)).all()
    assert (images(seed=1, epoch=2) != images(seed=1, epoch=3)).any()
    assert (images(seed=1, epoch=2) != images(seed=2, epoch=2)).any()


def test_a_further_draw_of_a_series_is_another_one(masked):
    stacks = StackDataset(masked, masked.series, VIEW, augmentation=Augmentation())
    first, again, other = (stacks[Draw(0, 1 + times * len(stacks))] for times in range(3))
    assert (first.images != again.images).any() and (again.images != other.images).any()


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


def test_windows_are_those_asked_for(masked):
    key = series_ids(masked)[0]
    view = replace(VIEW, windows=("organ",), crop=SIZE)
    images = to_channels(stack_of(masked, None, key, view), view)
    picture = read_png(image_folder(masked.folder, *key) / slice_name(1))
    assert (images[0, 0] == picture[..., 1]).all()


def test_labels_and_organ_maps_come_along(masked, organs, labels):
    dataset = StackDataset(
        masked, masked.series, VIEW, organs, labels=labels, with_organs=True, augmentation=STILL
    )
    for place, key in enumerate(series_ids(masked)):
        sample = dataset[place]
        assert (sample.targets.numpy() == labels.loc[key[0]].to_numpy()).all()
        assert bool(sample.has_organs) == (key in organs)
        assert sample.organs.shape == (4, 24, 24) and bool(sample.organs.any()) == (key in organs)


def test_slices_show_an_injury_by_the_area_of_its_organ(masked, organs, labels):
    targets = SliceTargets(labels, organs, {})
    healthy, unknown, key = series_ids(masked)[0], series_ids(masked)[1], series_ids(masked)[2]
    assert not targets.look_up(healthy, np.arange(12)).any()
    shown = targets.look_up(key, np.arange(12))
    for column, injury in enumerate(INJURIES):
        if injury == "extravasation_injury":
            assert np.isnan(shown[:, column]).all()
        else:
            assert shown[:, column].tolist() == [float(3 <= index < 9) for index in range(12)]
    assert np.isnan(targets.look_up(unknown, np.arange(12))).all()


def test_marked_slices_go_before_areas(masked, organs, labels, tmp_path):
    key, other = series_ids(masked)[2], series_ids(masked)[4]
    numbers = masked.read_slice_table(*key).instance_number
    rows = [
        {"injury_name": "Active_Extravasation", "instance_number": numbers[7]},
        {"injury_name": "Active_Extravasation", "instance_number": numbers[8]},
        {"injury_name": "Bowel", "instance_number": numbers[2]},
    ]
    table = pd.DataFrame(rows).assign(patient_id=key[0], series_id=key[1])
    table.to_csv(tmp_path / "marks.csv", index=False)
    marked = read_marked_slices(tmp_path / "marks.csv", masked)
    shown = SliceTargets(labels, organs, marked).look_up(key, np.arange(12))
    assert np.flatnonzero(shown[:, INJURIES.index("extravasation_injury")]).tolist() == [7, 8]
    assert np.flatnonzero(shown[:, INJURIES.index("bowel_injury")]).tolist() == [2]
    assert np.isnan(SliceTargets(labels, organs, marked).look_up(other, np.arange(12))[:, 1]).all()
    table.assign(series_id="nowhere").to_csv(tmp_path / "others.csv", index=False)
    with pytest.raises(UserError, match="marks no slice of a series"):
        read_marked_slices(tmp_path / "others.csv", masked)


def test_marks_of_slices_that_were_not_prepared_are_counted(masked, tmp_path, capsys):
    row = masked.series.iloc[0]
    known = masked.read_slice_table(row.patient_id, row.series_id).instance_number
    marks = pd.DataFrame(
        {
            "patient_id": row.patient_id,
            "series_id": row.series_id,
            "instance_number": [int(known[0]), int(known.max()) + 1],
            "injury_name": "Bowel",
        }
    )
    marks.to_csv(tmp_path / "marks.csv", index=False)
    found = read_marked_slices(tmp_path / "marks.csv", masked)
    assert found[row.patient_id, row.series_id]["bowel_injury"].tolist() == [0]
    assert "1 of the 2 marks of" in capsys.readouterr().err


def test_packed_slices_are_those_of_the_png(masked, organs, tmp_path):
    view = replace(VIEW, windows=("wide", "soft"), neighbours=3)
    packed = PackedSlices(masked, view.windows, tmp_path / "cache")
    plain = StackDataset(masked, masked.series, view, organs)
    fast = StackDataset(masked, masked.series, view, organs, packed=packed)
    for _ in range(2):  # packed, then read
        for index in range(len(plain)):
            assert all((a == b).all() for a, b in zip(plain[index], fast[index], strict=True))
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == len(masked.series)
    other = PackedSlices(masked, ("soft",), tmp_path / "cache")
    assert other.folder != packed.folder


def test_a_series_that_cannot_be_packed_leaves_nothing(masked, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(masked.folder, folder)
    dataset, key = PreparedDataset.open(folder), series_ids(masked)[0]
    (image_folder(folder, *key) / slice_name(11)).write_bytes(b"")
    packed = PackedSlices(dataset, ("soft",), tmp_path / "cache")
    with pytest.raises(UserError, match="is damaged"):
        packed.read(key, [0])
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_maps_follow_a_region_as_the_images_do(masked, organs):
    view = replace(VIEW, in_plane="organs", crop=40)
    stack = StackReader(masked, organs).read(series_ids(masked)[0], view, 0.5, with_organs=True)
    box = organs.box(series_ids(masked)[0], "organs")
    # 19 rows of organs and a margin of a tenth on each side, drawn at 40 px
    rows = np.flatnonzero(stack.organs[1].any(axis=1))
    assert (rows[-1] - rows[0] + 1) / 40 == pytest.approx((box.bottom - box.top) / 23, abs=0.03)
    assert cv2.countNonZero(stack.organs[0]) == 0  # slice 1 shows none
