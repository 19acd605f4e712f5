"""Loaders whose workers leave the cores to the model and report a user's mistake as it was."""

from collections.abc import Iterator
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
        try:
            yield from self.loader
        except UserError as error:
            raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from None


def _use_one_thread(worker: int) -> None:
    torch.set_num_threads(1)  # the workers are the parallelism; more threads would take the model's cores
    cv2.setNumThreads(1)
