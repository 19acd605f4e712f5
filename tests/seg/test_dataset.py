"""Who takes which part in a segmentation run, and what its networks are shown."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.core.errors import UserError
from src.ct.organ_labels import ORGANS
from src.data.prepared import PreparedDataset, as_channels
from src.data.selection import neighbour_indices
from src.seg.dataset import Key, SliceDataset, SliceOrder
from src.seg.options import SegOptions
from src.seg.split import open_data
from tests.helpers.voco_files import WINDOWS, draw_places, write_prepared

LEFT, RIGHT = ORGANS["left kidney"], ORGANS["right kidney"]


def draw_mask(index: int) -> np.ndarray:
    """The left kidney on the image's right, the right one on its left, one row for each slice."""
    mask = np.zeros((48, 48), dtype=np.uint8)
    mask[index + 10, 30:40], mask[index + 10, 8:18] = LEFT, RIGHT
    return mask


@pytest.fixture
def prepared(tmp_path) -> Path:
    """Six series of six patients, the first four with masks."""
    folder = write_prepared(tmp_path / "set", draw_places)
    dataset = PreparedDataset.open(folder)
    for row in dataset.series.head(4).itertuples():
        dataset.write_masks(row.patient_id, row.series_id, [draw_mask(index) for index in range(12)])
    return folder


def make_options(data: Path, **changes: object) -> SegOptions:
    plain = {"affine": 0.0, "appearance": 0.0, "validation": 0.0}
    return SegOptions(data=(str(data),), output="unused", windows=WINDOWS, **(plain | changes))


def parts_of(options: SegOptions) -> dict[str, str]:
    series = open_data(options).series
    return dict(zip(series["patient_id"], series["part"], strict=True))


def test_series_with_masks_teach_and_the_others_are_unlabelled(prepared):
    assert list(parts_of(make_options(prepared)).values()) == ["labelled"] * 4 + ["unlabelled"] * 2


def test_a_table_names_the_labelled_series_and_the_rest_is_unlabelled(prepared, tmp_path):
    table = tmp_path / "few.csv"
    table.write_text("patient_id,series_id\n11,101\n")
    parts = parts_of(make_options(prepared, labelled=str(table)))
    assert [patient for patient, part in parts.items() if part == "labelled"] == ["11"]
    assert set(parts.values()) == {"labelled", "unlabelled"}


def test_patients_left_out_take_no_part_with_any_of_their_series(prepared):
    table = pd.read_csv(prepared / "series.csv", dtype=str)
    table.loc[5, "patient_id"] = "10"  # the first, labelled patient has an unlabelled series, too
    (prepared / "images" / "15").rename(prepared / "images" / "10b")
    (prepared / "images" / "10b" / "105").rename(prepared / "images" / "10" / "105")
    table.sort_values(["patient_id", "series_id"]).to_csv(prepared / "series.csv", index=False)
    series = open_data(make_options(prepared, leave_out=("10",))).series
    assert series.loc[series["patient_id"] == "10", "part"].tolist() == ["left out"] * 2
    assert (series["part"] == "left out").sum() == 2


def test_the_validation_share_is_of_labelled_patients_and_follows_from_the_seed(prepared):
    drawn = [
        tuple(patient for patient, part in parts_of(options).items() if part == "left out")
        for options in (make_options(prepared, validation=0.5, seed=seed) for seed in (0, 0, 1, 2, 3))
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    assert all(len(patients) == 2 and set(patients) <= {"10", "11", "12", "13"} for patients in drawn)


def test_at_least_one_patient_is_left_out_and_one_remains(prepared):
    for share in (0.01, 0.99):
        parts = list(parts_of(make_options(prepared, validation=share)).values())
        assert parts.count("left out") == (1 if share < 0.5 else 3)
        assert parts.count("labelled") == (3 if share < 0.5 else 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leave_out": ("99",)}, "no patient 99"),
        ({"leave_out": ("10", "11", "12", "13")}, "no labelled series"),
        ({"windows": ("lung",)}, "no window lung"),
        ({"pseudo": 1.0, "leave_out": ("14", "15")}, "no unlabelled series"),
    ],
)
def test_what_cannot_be_learned_from_is_one_clear_line(prepared, changes, message):
    with pytest.raises(UserError, match=message):
        open_data(
            SegOptions(data=(str(prepared),), output="x", validation=0.0, **({"windows": WINDOWS} | changes))
        )


def test_a_table_that_names_a_series_without_masks_is_refused(prepared, tmp_path):
    table = tmp_path / "few.csv"
    table.write_text("patient_id,series_id\n14,104\n")
    with pytest.raises(UserError, match="series 104 of patient 14 has no masks"):
        open_data(make_options(prepared, labelled=str(table)))


def test_sets_of_two_sizes_are_refused(prepared, tmp_path):
    other = write_prepared(tmp_path / "small", lambda s, i: draw_places(s, i)[:40, :40])
    options = make_options(prepared)
    with pytest.raises(UserError, match="40 and 48 px"):
        open_data(SegOptions(data=(str(prepared), str(other)), output="x", windows=options.windows))


def test_neighbours_stand_around_their_slice_and_the_ends_repeat():
    assert neighbour_indices(np.array([0, 3, 5]), 3, 6).tolist() == [[0, 0, 1], [2, 3, 4], [4, 5, 5]]
    assert neighbour_indices(np.array([0]), 5, 1).tolist() == [[0, 0, 0, 0, 0]]


def test_a_sample_is_a_slice_with_its_neighbours_and_its_own_mask(prepared):
    dataset = SliceDataset(open_data(make_options(prepared)), make_options(prepared))
    seen = set()
    for number in range(40):
        sample = dataset[Key(True, number)]
        view = sample.strong[0].numpy()  # (48, 48, 9); the third window tells the slice
        slices = view[0, 0, 2::3].tolist()
        index = slices[1]
        assert slices == neighbour_indices(np.array([index]), 3, 12)[0].tolist()
        assert view[:, 0, 3].tolist() == list(range(48))  # its first window tells the row
        assert np.array_equal(sample.mask.numpy(), draw_mask(index))
        assert np.array_equal(sample.strong[1].numpy(), view)  # nothing is changed here
        seen.add(index)
    assert len(seen) > 8


def test_unlabelled_samples_never_read_a_mask(prepared):
    (prepared / "masks").rename(prepared / "masks_away")
    (prepared / "masks").mkdir()
    for folder in sorted((prepared / "masks_away").iterdir()):
        (prepared / "masks" / folder.name / next(folder.iterdir()).name).mkdir(parents=True)  # empty
    table = prepared / "few.csv"
    table.write_text("patient_id,series_id\n11,101\n")
    options = make_options(prepared, labelled=str(table))
    dataset = SliceDataset(open_data(options), options)
    patients = set()
    for number in range(10):
        sample = dataset[Key(False, number)]
        assert not sample.is_labelled
        assert sample.mask.max() == 0
        patients.add(dataset.name_series([Key(False, number)]))
    assert len(patients) == 5
    with pytest.raises(UserError, match="no slice"):
        dataset[Key(True, 0)]


def test_the_two_views_are_other_appearances_of_one_place(prepared):
    options = make_options(prepared, appearance=1.0)
    sample = SliceDataset(open_data(options), options)[Key(True, 3)]
    a, b = (view.numpy().astype(float) for view in sample.strong)
    assert np.abs(a - b).mean() > 1
    again = SliceDataset(open_data(options), options)[Key(True, 3)]
    assert np.array_equal(again.strong, sample.strong)


def test_a_flip_swaps_the_labels_of_the_kidneys_and_the_default_has_none(prepared):
    assert SegOptions(data=("x",), output="y").flip == 0
    options = make_options(prepared, flip=1.0)
    sample = SliceDataset(open_data(options), options)[Key(True, 0)]
    index = int(sample.strong[0, 0, 0, 5])
    assert sample.strong[0, 0, :, 4].tolist() == list(range(47, -1, -1))  # columns run backwards
    flipped = draw_mask(index)[:, ::-1]
    swap = {0: 0, LEFT: RIGHT, RIGHT: LEFT}
    expected = np.vectorize(swap.get)(flipped)
    assert np.array_equal(sample.mask.numpy(), expected)
    assert set(np.unique(sample.mask[:, 24:])) == {0, LEFT}  # the left kidney stays on the image's right


def test_a_rotation_turns_slice_and_mask_alike(prepared):
    options = make_options(prepared, affine=1.0)
    dataset = SliceDataset(open_data(options), options)
    moved = 0
    for number in range(12):
        sample = dataset[Key(True, number)]
        rows, columns = np.nonzero(sample.mask.numpy() == LEFT)
        inside = (sample.strong[0, ..., 4] > 0).numpy()[rows, columns]  # not filled from outside
        original = sample.strong[0].numpy()[rows[inside], columns[inside]]
        index = np.median(original[:, 5])
        assert np.abs(original[:, 3].astype(float) - (index + 10)).max() <= 1  # the row it came from
        moved += not np.array_equal(sample.mask.numpy(), draw_mask(int(index)))
    assert moved > 8


def test_series_take_turns_so_that_none_is_forgotten(prepared):
    dataset = SliceDataset(open_data(make_options(prepared)), make_options(prepared))
    for round_ in range(5):
        rows = [dataset.series_of(Key(True, round_ * 4 + place)) for place in range(4)]
        assert sorted(rows) == [0, 1, 2, 3]
    rounds = {tuple(dataset.series_of(Key(True, r * 4 + place)) for place in range(4)) for r in range(8)}
    assert len(rounds) > 3


def test_a_repeated_set_takes_more_turns(prepared, tmp_path):
    few = write_prepared(tmp_path / "few", draw_places, series=1)
    dataset = PreparedDataset.open(few)
    dataset.write_masks("10", "100", [draw_mask(index) for index in range(12)])
    options = SegOptions(
        data=(str(prepared), str(few)), output="x", windows=WINDOWS, validation=0.0, repeat=(1, 3)
    )
    samples = SliceDataset(open_data(options), options)
    sets = [samples.parts[True].iloc[samples.series_of(Key(True, number))]["set"] for number in range(7)]
    assert sorted(sets) == [0] * 4 + [1] * 3  # one round
    with pytest.raises(ValueError, match="one value a set"):
        make_options(prepared, repeat=(1, 3))


def test_processes_share_the_batches_of_one():
    options = SegOptions(data=("x",), output="y", batch=4, unlabelled_batch=2, pseudo=1.0, steps=3)
    alone = list(SliceOrder(options, first_step=1))
    shared = [list(SliceOrder(options, first_step=1, rank=rank, world=2)) for rank in (0, 1)]
    assert [len(keys) for keys in alone] == [6, 6]
    for step, keys in enumerate(alone):
        assert sorted(keys) == sorted(shared[0][step] + shared[1][step])
        assert [key.is_labelled for key in shared[0][step]] == [True, True, False]
    assert len({key for keys in alone for key in keys}) == 12  # every step sees others
    with pytest.raises(UserError, match="--unlabelled-batch 2 must be a multiple"):
        SliceOrder(options, 0, world=4)


def test_without_unlabelled_terms_no_unlabelled_slice_is_read():
    options = SegOptions(data=("x",), output="y", batch=3, steps=2)
    assert [[key.is_labelled for key in keys] for keys in SliceOrder(options, 0)] == [[True] * 3] * 2


def test_the_windows_of_a_slice_stand_together():
    images = np.arange(2 * 3 * 1 * 1 * 2).reshape(2, 3, 1, 1, 2)  # (B, T, H, W, C)
    assert as_channels(images).reshape(2, 6).tolist() == images.reshape(2, 6).tolist()
