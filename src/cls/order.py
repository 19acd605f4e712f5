"""The order of series in training, in one process or several, and their weights in the loss."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch.utils.data import Sampler

from src.core.errors import UserError
from src.core.runtime import sample_rng
from src.core.targets import INJURIES


class Draw(NamedTuple):
    """A training sample: an epoch and a number of `SeriesOrder.epoch`."""

    epoch: int
    number: int


def require_even_share(batch: int, world: int) -> None:
    """Make sure that `world` processes can share a batch evenly.

    Raises:
        UserError: they cannot.
    """
    if batch % world:
        raise UserError(f"option --batch {batch} must be a multiple of the number of processes, {world}")


class SeriesOrder:
    """The series of every batch of every epoch, from (seed, epoch) alone.

    Args:
        series: rows with `patient_id`.
        labels: the label columns, indexed by `patient_id`.
        batch: series of a batch, of all processes together.
        class_balance: share of the series that are drawn by injury.
        injuries: of the network's targets, by which series are drawn.
        seed: of the draws.
        world: number of processes.

    Raises:
        UserError: a batch that the processes cannot share evenly.
    """

    def __init__(
        self,
        series: pd.DataFrame,
        labels: pd.DataFrame,
        batch: int,
        class_balance: float = 0.0,
        injuries: Sequence[str] = INJURIES,
        seed: int = 0,
        world: int = 1,
    ) -> None:
        require_even_share(batch, world)
        self.batch, self.seed, self.world, self.class_balance = batch, seed, world, class_balance
        self.count = len(series)
        injured = labels.loc[series["patient_id"], list(injuries)]
        self.probabilities = _draw_probabilities(injured.to_numpy(np.float64), class_balance)

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return math.ceil(self.count / self.batch)

    @property
    def importance(self) -> np.ndarray:
        """Weight of each series when it is drawn; on average, all count the same."""
        return 1 / (self.count * self.probabilities)

    def epoch(self, epoch: int) -> np.ndarray:
        """(batches, batch) draws. The last batch is filled up with the first series of the epoch.

        A draw is the number of the series the first time in the epoch, and `count` more each further time, so
        that each draw has its own augmentation.
        """
        rng = sample_rng(self.seed, epoch, self.count)
        if self.class_balance:
            order = rng.choice(self.count, self.batches * self.batch, p=self.probabilities)
        else:
            order = np.resize(rng.permutation(self.count), self.batches * self.batch)
        times = pd.Series(order).groupby(order).cumcount().to_numpy()
        return (order + self.count * times).reshape(self.batches, self.batch)

    def series_of(self, draws: np.ndarray) -> np.ndarray:
        """The series of some draws."""
        return np.asarray(draws) % self.count

    def share(self, epoch: int, rank: int) -> np.ndarray:
        """(batches, share of a batch) draws that one process reads in an epoch."""
        share = self.batch // self.world
        return self.epoch(epoch)[:, rank * share : (rank + 1) * share]


class RunSampler(Sampler[list[Draw]]):
    """The batches of one process in the remaining epochs.

    One sampler for the whole run: the loader's processes start once, before the model takes memory that they
    would share.
    """

    def __init__(self, order: SeriesOrder, epochs: range, rank: int) -> None:
        self.order, self.epochs, self.rank = order, epochs, rank

    def __len__(self) -> int:
        return len(self.epochs) * self.order.batches

    def __iter__(self) -> Iterator[list[Draw]]:
        for epoch in self.epochs:
            for batch in self.order.share(epoch, self.rank):
                yield [Draw(epoch, int(draw)) for draw in batch]


def _draw_probabilities(injured: np.ndarray, class_balance: float) -> np.ndarray:
    """The probability of drawing each series.

    A share `class_balance` is spread evenly over the injuries and "none", then over the series of each.

    Args:
        injured: 0 or 1, (series, injuries).
    """
    classes = np.column_stack([injured, injured.sum(axis=1) == 0])
    classes = classes[:, classes.sum(axis=0) > 0]
    by_class = (classes / classes.sum(axis=0)).mean(axis=1)
    return (1 - class_balance) / len(injured) + class_balance * by_class
