"""The order of series: epochs, class balance, and the share of each process."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from src.cls.options import ClassifierOptions
from src.cls.order import RunSampler, SeriesOrder, require_shared_batch
from src.core.errors import UserError
from src.core.targets import INJURIES
from tests.helpers.score_frames import draw_labels

LABELS = draw_labels(60, injury_rate=0.05).set_index("patient_id", drop=False)
SERIES = pd.DataFrame({"patient_id": np.repeat(LABELS.patient_id.to_numpy(), 2)[:101]})


def order(**changes) -> SeriesOrder:
    return SeriesOrder(SERIES, LABELS, **{"batch": 8, "seed": 1} | changes)


def test_series_order_epoch_holds_every_series_and_fills_its_last_batch():
    batches = order().epoch(0)
    assert batches.shape == (13, 8) and set(batches.ravel()[:101]) == set(range(101))
    # seen a second time: the same series, as another draw
    assert batches.ravel()[101:].tolist() == (batches.ravel()[:3] + 101).tolist()
    assert order().series_of(batches).ravel()[101:].tolist() == batches.ravel()[:3].tolist()
    assert (order().epoch(0) == batches).all() and (order().epoch(1) != batches).any()


def test_series_order_shares_make_the_batches_of_one_process():
    whole = order().epoch(3)
    shares = [order(world=2).share(3, rank) for rank in (0, 1)]
    assert (np.hstack(shares) == whole).all()


def test_run_sampler_covers_the_remaining_epochs():
    batches = list(RunSampler(order(world=2), range(3, 5), rank=1))
    assert len(batches) == len(RunSampler(order(world=2), range(3, 5), rank=1)) == 26
    assert [draw.number for draw in batches[13]] == order(world=2).share(4, 1)[0].tolist()
    assert {draw.epoch for draw in batches[12]} == {3} and {draw.epoch for draw in batches[13]} == {4}


@pytest.mark.parametrize(
    ("batch", "world", "part"),
    [
        (4, 4, "leaves a process one, give at least twice"),
        (6, 4, "must be a multiple of the number"),
        (8, 4, ""),
    ],
)
def test_require_shared_batch_needs_two_stacks_per_process_to_mix(tmp_path, batch, world, part):
    files = dict.fromkeys(("data", "labels", "folds", "output"), tmp_path)
    options = ClassifierOptions(**files, batch=batch, cutmix=0.25)
    with pytest.raises(UserError, match=part) if part else nullcontext():
        require_shared_batch(options, world)
    if batch % world == 0:
        require_shared_batch(replace(options, cutmix=0.0), world)


def test_series_order_class_balance_draws_injuries_more_often():
    injured = LABELS.loc[SERIES.patient_id, list(INJURIES)].any(axis=1).to_numpy()
    shares = []
    for balance in (0.0, 0.5, 1.0):
        own = order(class_balance=balance)
        drawn = np.concatenate([own.epoch(epoch).ravel() for epoch in range(30)]) % 101
        shares.append(injured[drawn].mean())
    assert shares[0] == pytest.approx(injured.mean(), abs=0.02)
    assert shares[0] < shares[1] < shares[2]


def test_series_order_class_balance_uses_injuries_of_the_targets_only():
    labels = LABELS.loc[SERIES.patient_id, list(INJURIES)]
    chosen = labels.sum().idxmax()
    own = order(class_balance=1.0, injuries=(chosen,))
    has_it = labels[chosen].to_numpy() == 1
    others = own.probabilities[~has_it]
    assert labels[~has_it].to_numpy().any() and np.ptp(others) == 0, "other injuries do not count"
    assert own.probabilities[has_it].min() > others[0]


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_series_order_importance_gives_all_series_the_same_weight(balance):
    own = order(class_balance=balance)
    assert (own.probabilities * own.importance * own.count) == pytest.approx(1.0)
    drawn = own.series_of(np.concatenate([own.epoch(epoch).ravel() for epoch in range(400)]))
    counts = np.bincount(drawn, minlength=101) * own.importance / len(drawn) * 101
    assert counts.mean() == pytest.approx(1.0, abs=0.05)


def test_series_order_draws_of_an_epoch_are_unique():
    draws = order(class_balance=1.0).epoch(0).ravel()
    assert len(set(draws)) == len(draws) and len(set(draws % 101)) < len(draws)
