"""The order of volumes: new in each epoch, shared out exactly, repeats of a volume far apart."""

from itertools import chain

import pytest

from src.core.errors import UserError
from src.voco.order import VolumeOrder


def order_of(entries, batch, steps, **changes):
    return VolumeOrder(entries, batch, **{"seed": 0, "first_step": 0, "steps": steps} | changes)


def test_volume_order_shuffles_every_epoch():
    batches = list(order_of(12, 4, 30))
    epochs = [list(chain(*batches[start : start + 3])) for start in range(0, 30, 3)]
    for number, epoch in enumerate(epochs):
        assert {key[0] for key in epoch} == {number}
        assert sorted(key[1] for key in epoch) == list(range(12))
    assert len({tuple(key[1] for key in epoch) for epoch in epochs}) == 10
    pairs = {(a[1], b[1]) for batch in batches for a, b in zip(batch, batch[1:] + batch[:1], strict=True)}
    assert len(pairs) > 60  # of 132: the inter-volume pairs change


def test_volume_order_visits_all_volumes_without_repeats_in_a_batch():
    batches = list(order_of(7, 3, 40))
    assert all(len({volume for _, volume in batch}) == 3 for batch in batches)
    assert {volume for batch in batches for _, volume in batch} == set(range(7))


def test_volume_order_resumes_at_a_step():
    whole = list(order_of(7, 3, 20, seed=5))
    resumed = order_of(7, 3, 20, seed=5, first_step=9)
    assert list(resumed) == whole[9:] and len(resumed) == 11


@pytest.mark.parametrize("world", [2, 3, 6])
def test_volume_order_shares_the_same_batches_among_processes(world):
    whole = list(order_of(20, 6, 10))
    shares = [list(order_of(20, 6, 10, rank=rank, world=world)) for rank in range(world)]
    for step in range(10):
        assert list(chain(*(share[step] for share in shares))) == whole[step]
        assert {len(share[step]) for share in shares} == {6 // world}
    assert order_of(20, 6, 10, rank=1, world=world).global_batch(7) == whole[7]


SETS = ((40, 1), (14, 5), (18, 2))


def test_volume_order_repeats_sets():
    batches = list(order_of(146, 2, 73, sets=SETS))
    assert sorted(entry for batch in batches for _, entry in batch) == list(range(146))


@pytest.mark.parametrize("sets", [SETS, ((14, 10),), ((14, 3), (14, 3))])
def test_volume_order_of_repeated_sets_has_no_repeats_in_a_batch(sets):
    series_of, first = [], 0
    for series, repeat in sets:
        series_of += [first + number for number in range(series)] * repeat
        first += series
    for seed in range(50):
        steps = 2 * (len(series_of) // 8)
        for batch in order_of(len(series_of), 8, steps, seed=seed, sets=sets):
            assert len({series_of[entry] for _, entry in batch}) == 8


def test_volume_order_mixes_repeated_sets_with_the_others():
    batches = list(order_of(146, 2, 73, sets=SETS))
    entries = [entry for batch in batches for _, entry in batch]
    for first in range(0, 140, 35):
        share = sum(40 <= entry < 110 for entry in entries[first : first + 35])
        assert 9 <= share <= 26  # 70 of 146 is 17 of 35


def test_volume_order_shuffles_every_run_of_a_repeated_set():
    entries = [entry for batch in order_of(40, 2, 20, sets=((10, 4),)) for _, entry in batch]
    runs = [tuple(entry % 10 for entry in entries[first : first + 10]) for first in range(0, 40, 10)]
    assert len(set(runs)) == 4 and all(sorted(run) == list(range(10)) for run in runs)


@pytest.mark.parametrize(
    ("entries", "batch", "world", "message"),
    [
        (3, 4, 1, "3 usable series are fewer than a batch of 4"),
        (30, 4, 3, "--batch 4 must be a multiple of the number of processes, 3"),
    ],
)
def test_volume_order_refuses_impossible_batches(entries, batch, world, message):
    with pytest.raises(UserError, match=message):
        order_of(entries, batch, 1, world=world)
