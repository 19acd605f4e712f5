"""Data loaders whose workers use one thread each and report a UserError in one line."""

import errno
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from src.core.errors import UserError


class StackLoader:
    """Batches of a dataset, in order; `workers` processes read ahead, or the calling process reads with 0.

    Args:
        order: arguments of `DataLoader`: `batch_sampler=`, or `sampler=` with `batch_size=`; where that is
            None, samples are named tuples and stay single.
    """

    def __init__(self, dataset: Dataset, workers: int, **order: Any):
        self.loader = DataLoader(
            dataset,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_prepare_worker,
            collate_fn=_share_tensors if order.get("batch_size", 0) is None else None,
            **order,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Yield batches. A worker's UserError is raised with its own line, without the worker's traceback.

        Raises:
            UserError: also where /dev/shm, through which workers pass batches, or the memory is full.
        """
        try:
            if self.loader.num_workers:
                multiprocessing.Lock()  # the first object in /dev/shm; torch would add a traceback
            with _without_opencv_threads():
                batches = iter(self.loader)  # starts the workers
            yield from batches
        except UserError as error:
            raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from None
        except (OSError, RuntimeError) as error:
            if "killed by signal: Killed" in f"{error} {error.__cause__}":
                raise UserError(
                    "a worker was killed, as happens if the memory is full, which batches in /dev/shm also "
                    "take: use fewer --workers"
                ) from None
            if not _is_shared_memory_full(error):
                raise
            raise UserError(
                "/dev/shm has no room for the batches of the workers: use fewer --workers (0 needs no room), "
                "or start Docker with a larger --shm-size"
            ) from None


def _share_tensors(sample: tuple[Any, ...]) -> tuple[Any, ...]:
    """Move the tensors of a single sample to shared memory in a worker, as collating does for a batch.

    torch itself would move them in a thread of the worker: its errors are lost, and the caller waits forever.
    """
    if get_worker_info() is not None:
        for part in sample:
            if isinstance(part, Tensor) and part.numel():
                part.share_memory_()
    return sample


def _is_shared_memory_full(error: OSError | RuntimeError) -> bool:
    """Return whether workers failed because /dev/shm is full.

    The error is an OSError if they cannot be started, and a RuntimeError if a batch does not fit: "unable to
    allocate shared memory(shm) ...", or, caused by "Bus error. It is possible that dataloader's workers are
    out of shared memory ...", that a worker exited.
    """
    return getattr(error, "errno", None) == errno.ENOSPC or "shared memory" in f"{error} {error.__cause__}"


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


def _prepare_worker(worker: int) -> None:
    signal.signal(signal.SIGBUS, signal.SIG_DFL)  # torch's handler prints a line beside that of StackLoader
    torch.set_num_threads(1)  # workers run in parallel; more threads would take the model's cores
    if cv2.getNumThreads() != 1:  # only in workers that were not forked
        cv2.setNumThreads(1)
