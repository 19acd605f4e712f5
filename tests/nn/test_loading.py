"""Loader processes start whatever OpenCV did before, and end in one line if shared memory is full."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from src.core.errors import UserError
from src.nn.loading import StackLoader
from tests.helpers.small_shared_memory import run_with_shared_memory

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


FULL = """
import torch
from src.core.errors import UserError
from src.nn.loading import StackLoader

class Images:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return torch.zeros(1_000_000), "its name"

try:
    next(iter(StackLoader(Images(), 1, batch_size=BATCH)))
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("batch", [1, None])
def test_stack_loader_reports_full_shared_memory(batch):
    """Some versions of torch reserve room for a batch, and older ones lose the worker that writes it."""
    code = FULL.replace("BATCH", str(batch))
    status, out, err = run_with_shared_memory("100k", [sys.executable, "-c", code])
    assert re.fullmatch(r"/dev/shm has no room .*--workers .*--shm-size\n", out), err
    assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGBUS, r"^/dev/shm has no room .*--workers .*--shm-size$"),  # writing where it is full
        (signal.SIGKILL, r"^a worker was killed, .* memory is full.*/dev/shm .*--workers$"),
    ],
    ids=["bus", "kill"],
)
def test_stack_loader_reports_a_worker_without_memory(number, line, capfd):
    loader = StackLoader(Samples([lambda: os.kill(os.getpid(), number)]), 1, batch_size=1)
    with pytest.raises(UserError, match=line):
        next(iter(loader))
    assert capfd.readouterr().err == ""


def test_stack_loader_keeps_other_errors_of_workers():
    samples = Samples([lambda: torch.zeros(1), lambda: torch.zeros(2)])
    with pytest.raises(RuntimeError, match="stack expects each tensor"):
        next(iter(StackLoader(samples, 1, batch_size=2)))
