"""Order of the series in training, for one or several processes, and their weights in the loss."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch.utils.data import Sampler

from src.cls.options import ClassifierOptions
from src.core.errors import UserError
from src.core.runtime import sample_rng
from src.core.targets import INJURIES


class Draw(NamedTuple):
    """A training sample: an epoch and a draw from `SeriesOrder.epoch`."""

    epoch: int
    number: int


def require_even_share(batch: int, world: int) -> None:
    """Check that `world` processes can share a batch evenly.

    Raises:
        UserError: they cannot.
    """
    if batch % world:
        raise UserError(f"option --batch {batch} must be a multiple of the number of processes, {world}")


def require_shared_batch(options: ClassifierOptions, world: int) -> None:
    """Check that `world` processes can share a batch, and that each can mix its stacks.

    Raises:
        UserError: they cannot, or a process has a single stack.
    """
    require_even_share(options.batch, world)
    if (options.mixup or options.cutmix) and options.batch // world < 2:
        raise UserError(
            f"--mixup and --cutmix mix the stacks of a process's batch: --batch {options.batch} leaves a "
            "process one, give at least twice the number of processes"
        )


class SeriesOrder:
    """Order of the series: batches of every epoch, determined by (seed, epoch).

    Args:
        series: rows with `patient_id`.
        labels: the label columns, indexed by `patient_id`.
        batch: series per batch, over all processes.
        class_balance: fraction of the series that are drawn by injury.
        injuries: injuries of the network's targets, by which series are drawn.
        seed: seed of the draws.
        world: number of processes.

    Raises:
        UserError: the processes cannot share a batch evenly.
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
        """Number of batches per epoch."""
        return math.ceil(self.count / self.batch)

    @property
    def importance(self) -> np.ndarray:
        """Weight of each series when it is drawn; on average, all series count equally."""
        return 1 / (self.count * self.probabilities)

    def epoch(self, epoch: int) -> np.ndarray:
        """Return (batches, batch) draws. The last batch is filled up with the first series of the epoch.

        A draw is the index of the series the first time in the epoch, plus `count` each further time, so that
        each draw has its own augmentation.
        """
        rng = sample_rng(self.seed, epoch, self.count)
        if self.class_balance:
            order = rng.choice(self.count, self.batches * self.batch, p=self.probabilities)
        else:
            order = np.resize(rng.permutation(self.count), self.batches * self.batch)
        times = pd.Series(order).groupby(order).cumcount().to_numpy()
        return (order + self.count * times).reshape(self.batches, self.batch)

    def series_of(self, draws: np.ndarray) -> np.ndarray:
        """Return the series of draws."""
        return np.asarray(draws) % self.count

    def share(self, epoch: int, rank: int) -> np.ndarray:
        """Return (batches, batch / world) draws that one process reads in an epoch."""
        share = self.batch // self.world
        return self.epoch(epoch)[:, rank * share : (rank + 1) * share]


class RunSampler(Sampler[list[Draw]]):
    """The batches of one process in the remaining epochs.

    One sampler serves the whole run: the loader's workers start once, before the model allocates memory that
    they would share.
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
    """Return the probability of drawing each series.

    A fraction `class_balance` is spread evenly over the injuries and "none", then over the series of each.

    Args:
        injured: 0 or 1, (series, injuries).
    """
    classes = np.column_stack([injured, injured.sum(axis=1) == 0])
    classes = classes[:, classes.sum(axis=0) > 0]
    by_class = (classes / classes.sum(axis=0)).mean(axis=1)
    return (1 - class_balance) / len(injured) + class_balance * by_class
