"""Training samples: slices with their neighbours, augmented, and their label maps."""

import numpy as np
import pytest

from src.core.errors import UserError
from src.data.prepared import PreparedDataset
from src.data.selection import neighbour_indices
from src.seg.dataset import Key, SliceDataset, SliceOrder
from src.seg.options import SegOptions
from src.seg.split import open_data
from tests.helpers.seg_places import LEFT, RIGHT, draw_mask, make_options, write_places
from tests.helpers.voco_files import draw_places, write_prepared


@pytest.fixture
def prepared(tmp_path):
    return write_places(tmp_path / "set")


def open_dataset(*sets, **changes):
    options = make_options(*sets, **changes)
    return SliceDataset(open_data(options), options)


def test_slice_dataset_gives_a_slice_with_neighbours_and_mask(prepared):
    dataset = open_dataset(prepared)
    seen = set()
    for number in range(40):
        sample = dataset[Key(True, number)]
        view = sample.strong[0].numpy()  # (48, 48, 9); the third window encodes the slice
        slices = view[0, 0, 2::3].tolist()
        index = slices[1]
        assert slices == neighbour_indices(np.array([index]), 3, 12)[0].tolist()
        assert view[:, 0, 3].tolist() == list(range(48))  # its first window encodes the row
        assert np.array_equal(sample.mask.numpy(), draw_mask(index))
        assert np.array_equal(sample.strong[1].numpy(), view)  # no augmentation here
        seen.add(index)
    assert len(seen) > 8


def test_slice_dataset_from_the_cache_equals_that_from_png(prepared, tmp_path):
    other = write_places(tmp_path / "other")
    changes = {"affine": 0.8, "appearance": 0.5}
    plain = open_dataset(prepared, other, **changes)
    cached = open_dataset(prepared, other, cache=tmp_path / "cache", **changes)
    for number in range(20):
        key = Key(True, number)
        assert all((a == b).all() for a, b in zip(plain[key], cached[key], strict=True))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_slice_dataset_reads_no_mask_for_unlabelled_samples(prepared):
    (prepared / "masks").rename(prepared / "masks_away")
    (prepared / "masks").mkdir()
    for folder in sorted((prepared / "masks_away").iterdir()):
        (prepared / "masks" / folder.name / next(folder.iterdir()).name).mkdir(parents=True)  # empty
    table = prepared / "few.csv"
    table.write_text("patient_id,series_id\n11,101\n")
    dataset = open_dataset(prepared, labelled=str(table))
    patients = set()
    for number in range(10):
        sample = dataset[Key(False, number)]
        assert not sample.is_labelled
        assert sample.mask.max() == 0
        patients.add(dataset.name_series([Key(False, number)]))
    assert len(patients) == 5
    with pytest.raises(UserError, match="no slice"):
        dataset[Key(True, 0)]


def test_slice_dataset_changes_appearance_per_sub_network(prepared):
    sample = open_dataset(prepared, appearance=1.0)[Key(True, 3)]
    a, b = (view.numpy().astype(float) for view in sample.strong)
    assert np.abs(a - b).mean() > 1
    again = open_dataset(prepared, appearance=1.0)[Key(True, 3)]
    assert np.array_equal(again.strong, sample.strong)


def test_slice_dataset_flip_swaps_kidney_labels_and_is_off_by_default(prepared):
    assert SegOptions(data=("x",), output="y").flip == 0
    sample = open_dataset(prepared, flip=1.0)[Key(True, 0)]
    index = int(sample.strong[0, 0, 0, 5])
    assert sample.strong[0, 0, :, 4].tolist() == list(range(47, -1, -1))  # columns run backwards
    flipped = draw_mask(index)[:, ::-1]
    swap = {0: 0, LEFT: RIGHT, RIGHT: LEFT}
    expected = np.vectorize(swap.get)(flipped)
    assert np.array_equal(sample.mask.numpy(), expected)
    assert set(np.unique(sample.mask[:, 24:])) == {0, LEFT}  # the left kidney stays on the image's right


def test_slice_dataset_rotates_slice_and_mask_together(prepared):
    dataset = open_dataset(prepared, affine=1.0)
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


def test_slice_dataset_takes_every_series_once_per_round(prepared):
    dataset = open_dataset(prepared)
    for round_ in range(5):
        rows = [dataset.series_of(Key(True, round_ * 4 + place)) for place in range(4)]
        assert sorted(rows) == [0, 1, 2, 3]
    rounds = {tuple(dataset.series_of(Key(True, r * 4 + place)) for place in range(4)) for r in range(8)}
    assert len(rounds) > 3


def test_slice_dataset_repeats_the_series_of_a_repeated_set(prepared, tmp_path):
    few = write_prepared(tmp_path / "few", draw_places, series=1)
    dataset = PreparedDataset.open(few)
    dataset.write_masks("10", "100", [draw_mask(index) for index in range(12)])
    samples = open_dataset(prepared, few, repeat=(1, 3))
    sets = [samples.parts[True].iloc[samples.series_of(Key(True, number))]["set"] for number in range(7)]
    assert sorted(sets) == [0] * 4 + [1] * 3  # one round
    with pytest.raises(ValueError, match="one value per set"):
        make_options(prepared, repeat=(1, 3))


def test_slice_order_divides_each_batch_among_processes():
    options = SegOptions(data=("x",), output="y", batch=4, unlabelled_batch=2, pseudo=1.0, steps=3)
    alone = list(SliceOrder(options, first_step=1))
    shared = [list(SliceOrder(options, first_step=1, rank=rank, world=2)) for rank in (0, 1)]
    assert [len(keys) for keys in alone] == [6, 6]
    for step, keys in enumerate(alone):
        assert sorted(keys) == sorted(shared[0][step] + shared[1][step])
        assert [key.is_labelled for key in shared[0][step]] == [True, True, False]
    assert len({key for keys in alone for key in keys}) == 12  # new samples in every step
    with pytest.raises(UserError, match="--unlabelled-batch 2 must be a multiple"):
        SliceOrder(options, 0, world=4)


def test_slice_order_has_no_unlabelled_keys_without_unlabelled_terms():
    options = SegOptions(data=("x",), output="y", batch=3, steps=2)
    assert [[key.is_labelled for key in keys] for keys in SliceOrder(options, 0)] == [[True] * 3] * 2
