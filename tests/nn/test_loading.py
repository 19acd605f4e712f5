"""Loader processes start whatever OpenCV did before, and end in one line if shared memory is full."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.errors import UserError
from src.nn.loading import StackLoader

ROOT = Path(__file__).resolve().parents[2]

CODE = """
import cv2
import numpy as np
from src.nn.loading import StackLoader

class Images:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        image = np.full((512, 512, 3), index, np.uint8)
        return int(cv2.GaussianBlur(image, (31, 31), 0).max()), cv2.getNumThreads()

cv2.setNumThreads(4)
for _ in range(3):
    cv2.GaussianBlur(np.zeros((2048, 2048, 3), np.uint8), (31, 31), 0)  # starts OpenCV's threads
values, threads = next(iter(StackLoader(Images(), 1, batch_size=2)))
print(values.tolist(), threads.tolist(), cv2.getNumThreads())
"""


def test_stack_loader_workers_start_after_opencv_used_threads():
    finished = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert finished.stdout.split() == ["[0,", "1]", "[1,", "1]", "4"], finished.stderr


class Samples(list):
    """Samples, each made by a function in the worker that reads it."""

    def __getitem__(self, index):
        return super().__getitem__(index)()


def test_stack_loader_passes_single_samples():
    samples = [lambda: (torch.arange(3), torch.zeros(0), "a"), lambda: (torch.ones(2), torch.zeros(0), "b")]
    alone, read_ahead = (list(StackLoader(Samples(samples), workers, batch_size=None)) for workers in (0, 1))
    assert str(alone) == str(read_ahead)


def lost_worker():
    os.kill(os.getpid(), signal.SIGBUS)  # what writing to a full /dev/shm does


def check_one_line(sample, batch_size):
    loader = StackLoader(Samples([sample]), 1, batch_size=batch_size)
    with pytest.raises(UserError, match=r"^/dev/shm has no room .*--workers .*--shm-size$"):
        next(iter(loader))


@pytest.mark.parametrize("batch_size", [1, None])
def test_stack_loader_reports_full_shared_memory(tmp_path, batch_size):
    """A tensor that takes no memory, until it is to be copied to shared memory."""
    size = 2 * shutil.disk_usage("/dev/shm").total
    huge = torch.from_numpy(np.memmap(tmp_path / "sparse", np.uint8, "w+", shape=size))
    check_one_line(lambda: (huge, "its name"), batch_size)


def test_stack_loader_reports_a_worker_that_wrote_to_full_shared_memory():
    check_one_line(lost_worker, 1)


def test_stack_loader_keeps_other_errors_of_workers():
    samples = Samples([lambda: torch.zeros(1), lambda: torch.zeros(2)])
    with pytest.raises(RuntimeError, match="stack expects each tensor"):
        next(iter(StackLoader(samples, 1, batch_size=2)))
