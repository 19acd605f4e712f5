"""Order of the volumes in the batches of a run, on one or several processes."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from src.core.errors import UserError


class VolumeOrder(Sampler[list[tuple[int, int]]]):
    """One process's part of the batches of `(epoch, entry)` for the steps `first_step <= step < steps`.

    Each epoch is a new random order, drawn from (seed, epoch), so that the pairs of the inter-volume loss
    change; the remainder after its last full batch is dropped. The global batch of a step is the same for any
    number of processes, each of which takes a consecutive part.

    Repeats of a volume are far apart: an epoch consists of `repeat` passes over each set, whose first and
    second half are shuffled separately, and the sets are then interleaved at random. Between two visits to a
    volume there are at least half as many others as its set has series. So no batch contains a volume twice
    if every repeated set has at least 2 * (`batch` - 1) series; with a smaller set it may.

    Args:
        entries: number of entries per epoch, `len(dataset)`.
        batch: volumes per step over all processes.
        rank: index of this process among `world` processes.
        sets: number of series and repeat factor of every set, in the order of the entries; by default one set
            of `entries` series, visited once.

    Raises:
        UserError: fewer entries than a batch, or a batch that the processes cannot share evenly.
    """

    def __init__(
        self,
        entries: int,
        batch: int,
        *,
        seed: int,
        first_step: int,
        steps: int,
        rank: int = 0,
        world: int = 1,
        sets: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        if batch % world:
            raise UserError(f"option --batch {batch} must be a multiple of the number of processes, {world}")
        if entries < batch:
            raise UserError(
                f"{entries} usable series are fewer than a batch of {batch}; prepare more, or lower --batch"
            )
        self.sets = tuple(sets or ((entries, 1),))
        if sum(series * repeat for series, repeat in self.sets) != entries:
            raise ValueError(f"sets {self.sets} do not make {entries} entries")
        self.batch, self.seed = batch, seed
        self.first_step, self.steps = first_step, steps
        self.batches = entries // batch  # number per epoch
        self.share = slice(rank * batch // world, (rank + 1) * batch // world)

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        ordered_epoch = -1
        for step in range(self.first_step, self.steps):
            epoch, place = divmod(step, self.batches)
            if epoch != ordered_epoch:
                order, ordered_epoch = self._order(epoch), epoch
            yield self._batch(order, epoch, place)[self.share]

    def global_batch(self, step: int) -> list[tuple[int, int]]:
        """Return `(epoch, entry)` of all processes at a step."""
        epoch, place = divmod(step, self.batches)
        return self._batch(self._order(epoch), epoch, place)

    def _batch(self, order: np.ndarray, epoch: int, place: int) -> list[tuple[int, int]]:
        return [(epoch, int(entry)) for entry in order[place * self.batch : (place + 1) * self.batch]]

    def _order(self, epoch: int) -> np.ndarray:
        """Return the entries of an epoch in order, int64."""
        rng = np.random.default_rng((self.seed, epoch))
        sizes = [series * repeat for series, repeat in self.sets]
        set_of_place = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
        order = np.empty(sum(sizes), dtype=np.int64)
        first = 0
        for number, (series, repeat) in enumerate(self.sets):
            order[set_of_place == number] = first + _run_through(series, repeat, rng)
            first += sizes[number]
        return order


def _run_through(series: int, repeat: int, rng: np.random.Generator) -> np.ndarray:
    """Return `repeat` shuffled passes over a set; visits to a series are more than `series // 2` apart."""
    order = rng.permutation(series)
    halves = np.array_split(order, 2)
    runs = [order, *(np.concatenate([rng.permutation(half) for half in halves]) for _ in range(repeat - 1))]
    return np.concatenate([number * series + run for number, run in enumerate(runs)])
