"""Loaders whose workers leave the cores to the model and report a user's mistake as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from src.core.errors import UserError


class StackLoader:
    """Batches of a dataset, in order; `workers` processes read ahead, 0 reads in this one.

    Args:
        order: what `DataLoader` takes: `batch_sampler=`, or `sampler=` with `batch_size=`.
    """

    def __init__(self, dataset: Dataset, workers: int, **order: Any):
        self.loader = DataLoader(
            dataset,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_use_one_thread,
            **order,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Raises UserError with its own one line, which a worker process would bury in a traceback."""
        with _without_opencv_threads():
            batches = iter(self.loader)  # starts the workers
        try:
            yield from batches
        except UserError as error:
            raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from None


@contextmanager
def _without_opencv_threads() -> Iterator[None]:
    """End OpenCV's threads for a while, so that processes may be forked.

    A fork copies the account of the threads but not the threads: a worker would wait for them for ever.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _use_one_thread(worker: int) -> None:
    torch.set_num_threads(1)  # the workers are the parallelism; more threads would take the model's cores
    if cv2.getNumThreads() != 1:  # a worker that was not forked
        cv2.setNumThreads(1)
