"""Loader processes start whatever OpenCV did before in the process that starts them."""

import subprocess
import sys
from pathlib import Path

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
