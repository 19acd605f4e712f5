"""Samples: the slices, crops and labels that the draws say, the same wherever and whenever they are made."""

from itertools import chain

import numpy as np
import pytest
import torch
from voco_files import WINDOWS, draw_indices, draw_ramps, write_prepared

from src.core.errors import UserError
from src.data.stack import PreparedDataset, image_folder
from src.nn.loading import StackLoader
from src.voco.crops import CropGrid, overlap_labels
from src.voco.dataset import VocoDataset, VolumeOrder

GRID = CropGrid((48, 48), (3, 3))


def open_dataset(*folders, windows=WINDOWS, grid=GRID, slab_slices=8, slices=4, seed=0):
    return VocoDataset(
        [PreparedDataset.open(folder) for folder in folders],
        windows=windows,
        grid=grid,
        random_crops=2,
        slab_slices=slab_slices,
        slices=slices,
        seed=seed,
    )


@pytest.fixture(scope="module")
def indices_set(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("indices") / "set", draw_indices, series=5, slices=20)


@pytest.fixture(scope="module")
def ramps_set(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("ramps") / "set", draw_ramps, series=3, slices=4)


def test_labels_say_where_the_tiles_were_cut(ramps_set):
    dataset = open_dataset(ramps_set)
    for epoch in range(10):
        sample = dataset[epoch, 1]
        assert sample.tiles.shape == (2 + 9, 4, 16, 16, 3) and sample.tiles.dtype == torch.uint8
        starts = sample.tiles[:, 0, 0, 0, :2].numpy().astype(int)  # the ramps give row and column
        np.testing.assert_array_equal(starts[2:], GRID.base_starts())
        np.testing.assert_array_equal(sample.label, overlap_labels(starts[:2], starts[2:], GRID.crop))


def test_slabs_lie_anywhere_in_z_and_their_slices_are_evenly_spaced(indices_set):
    dataset = open_dataset(indices_set)
    slabs = np.array([dataset[epoch, 0].tiles[0, :, 0, 0, 1].numpy() for epoch in range(300)])
    assert (np.diff(slabs.astype(int)) == 2).all()  # 4 of 8 consecutive slices
    assert set(slabs[:, 0]) == set(range(1, 1 + 13))  # 13 places for a slab of 8 among 20 slices


def test_a_series_shorter_than_the_slab_gives_all_it_has(indices_set):
    sample = open_dataset(indices_set, slab_slices=64, slices=40)[0, 0]
    np.testing.assert_array_equal(sample.tiles[0, :, 0, 0, 1], np.repeat(np.arange(20), 2))


def test_only_the_slices_of_the_sample_are_read(tmp_path):
    folder = write_prepared(tmp_path / "set", draw_indices, series=1, slices=20)
    dataset = open_dataset(folder)
    used = {f"{index:04d}.png" for index in dataset[0, 0].tiles[0, :, 0, 0, 1].tolist()}
    for path in image_folder(folder, "10", "100").glob("*.png"):
        if path.name not in used:
            path.unlink()
    dataset[0, 0]


def test_a_sample_follows_from_seed_epoch_and_volume(ramps_set):
    first, again = open_dataset(ramps_set)[3, 2], open_dataset(ramps_set)[3, 2]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (open_dataset(ramps_set)[4, 2], open_dataset(ramps_set, seed=1)[3, 2]):
        assert not torch.equal(first.label, other.label)


def test_workers_change_nothing(ramps_set):
    batches = []
    for workers in (0, 2):
        order = VolumeOrder(3, 3, seed=0, first_step=0, steps=4)
        batches.append(list(StackLoader(open_dataset(ramps_set), workers, batch_sampler=order)))
    for one, two in zip(*batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_windows_become_channels_in_the_order_asked_for(indices_set):
    one = open_dataset(indices_set, windows=("organ",))[0, 0]
    assert one.tiles.shape[-1] == 1 and one.tiles.max() < 20
    swapped = open_dataset(indices_set, windows=("wide", "soft"))[0, 3]
    assert swapped.tiles[0, 0, 0, 0].tolist() == [255, 3]


@pytest.mark.parametrize("canvas", [24, 96])
def test_slices_are_resized_to_the_canvas(ramps_set, canvas):
    sample = open_dataset(ramps_set, grid=CropGrid((canvas, canvas), (3, 3)))[0, 0]
    assert sample.tiles.shape[2:4] == (canvas // 3, canvas // 3)
    centre = sample.tiles[2 + 4, 0].float().mean((0, 1))  # the middle base
    assert abs(centre[0] - 23.5) < 1 and abs(centre[1] - 23.5) < 1


def test_several_sets_are_one_index_each_with_its_own_windows(tmp_path, indices_set):
    other = write_prepared(
        tmp_path / "other", lambda s, i: np.full((48, 48, 1), 77, np.uint8), series=2, windows=("soft",)
    )
    dataset = open_dataset(indices_set, other, windows=("soft",))
    assert len(dataset) == 7
    assert dataset[0, 4].tiles.unique().tolist() == [4]
    assert dataset[0, 5].tiles.unique().tolist() == [77]


def test_a_window_that_a_set_lacks_is_refused(indices_set):
    with pytest.raises(UserError, match="no window bone; it has soft organ wide"):
        open_dataset(indices_set, windows=("soft", "bone"))


def test_each_epoch_shows_every_volume_once_in_a_new_order():
    batches = list(VolumeOrder(12, 4, seed=0, first_step=0, steps=30))
    epochs = [list(chain(*batches[start : start + 3])) for start in range(0, 30, 3)]
    for number, epoch in enumerate(epochs):
        assert {key[0] for key in epoch} == {number}
        assert sorted(key[1] for key in epoch) == list(range(12))
    assert len({tuple(key[1] for key in epoch) for epoch in epochs}) == 10
    pairs = {(a[1], b[1]) for batch in batches for a, b in zip(batch, batch[1:] + batch[:1], strict=True)}
    assert len(pairs) > 60  # of 132: the inter-volume pairs change


def test_no_batch_holds_a_volume_twice_and_none_is_left_out_for_long():
    batches = list(VolumeOrder(7, 3, seed=0, first_step=0, steps=40))
    assert all(len({volume for _, volume in batch}) == 3 for batch in batches)
    assert {volume for batch in batches for _, volume in batch} == set(range(7))


def test_a_resumed_order_is_the_rest_of_the_whole_one():
    whole = list(VolumeOrder(7, 3, seed=5, first_step=0, steps=20))
    assert list(VolumeOrder(7, 3, seed=5, first_step=9, steps=20)) == whole[9:]


def test_fewer_volumes_than_a_batch_are_refused():
    with pytest.raises(UserError, match="3 usable series are fewer than a batch of 4"):
        VolumeOrder(3, 4, seed=0, first_step=0, steps=1)
