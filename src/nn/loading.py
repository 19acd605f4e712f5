"""Data loaders whose workers use one thread each and report a UserError in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from src.core.errors import UserError


class StackLoader:
    """Batches of a dataset, in order; `workers` processes read ahead, or the calling process reads with 0.

    Args:
        order: arguments of `DataLoader`: `batch_sampler=`, or `sampler=` with `batch_size=`.
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
        """Yield batches. A worker's UserError is raised with its own line, without the worker's traceback."""
        with _without_opencv_threads():
            batches = iter(self.loader)  # starts the workers
        try:
            yield from batches
        except UserError as error:
            raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from None


@contextmanager
def _without_opencv_threads() -> Iterator[None]:
    """End OpenCV's threads temporarily, so that processes can be forked.

    A fork copies OpenCV's record of its threads but not the threads: a worker would wait for them forever.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _use_one_thread(worker: int) -> None:
    torch.set_num_threads(1)  # workers run in parallel; more threads would take the model's cores
    if cv2.getNumThreads() != 1:  # only in workers that were not forked
        cv2.setNumThreads(1)
