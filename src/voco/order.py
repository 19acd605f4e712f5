"""Which volumes make the batches of a run, step by step, on one process or on several."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from src.core.errors import UserError


class VolumeOrder(Sampler[list[tuple[int, int]]]):
    """A process's share of the batches of `(epoch, entry)` of the steps `first_step <= step < steps`.

    Each epoch is a new random order, drawn from (seed, epoch), so that the pairs of the inter-volume loss
    change; the remainder after its last full batch is dropped. The global batch of a step is the same for any
    number of processes, which share it in consecutive parts.

    Repeats of a volume are far apart: an epoch runs through each set `repeat` times, its first half and its
    second half shuffled separately in every run, and the sets are then shuffled into each other. Between two
    visits to a volume there are at least half as many others as its set has series. So no batch contains a
    volume twice if every repeated set has at least 2 * (`batch` - 1) series; with a smaller set it may.

    Args:
        entries: of an epoch, `len(dataset)`.
        batch: volumes per step over all processes.
        rank: number of this process, of `world`.
        sets: series and repeat factor of every set, in the order of the entries; by default one set of
            `entries` series, visited once.

    Raises:
        UserError: fewer entries than a batch holds, or a batch that the processes cannot share evenly.
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
        self.batches = entries // batch  # of an epoch
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
        """`(epoch, entry)` of all processes at a step."""
        epoch, place = divmod(step, self.batches)
        return self._batch(self._order(epoch), epoch, place)

    def _batch(self, order: np.ndarray, epoch: int, place: int) -> list[tuple[int, int]]:
        return [(epoch, int(entry)) for entry in order[place * self.batch : (place + 1) * self.batch]]

    def _order(self, epoch: int) -> np.ndarray:
        """The entries of an epoch in their order, int64."""
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
    """Entries of one set: `repeat` shuffled runs, visits to the same series more than `series // 2` apart."""
    order = rng.permutation(series)
    halves = np.array_split(order, 2)
    runs = [order, *(np.concatenate([rng.permutation(half) for half in halves]) for _ in range(repeat - 1))]
    return np.concatenate([number * series + run for number, run in enumerate(runs)])
