"""Scripts on two processes of torchrun, with one thread each."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    *("--monitor-interval", "5"),  # seconds until it ends the other process, which reports first
)


def start_two(script: str, given: Iterable[Any], **options: Any) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*LAUNCHER, str(ROOT / script), *map(str, given)]
    return subprocess.Popen(command, env=environment, text=True, **options)


def run_two(script: str, given: Iterable[Any]) -> subprocess.CompletedProcess:
    with start_two(script, given, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@contextmanager
def one_thread() -> Iterator[None]:
    """This process computes as each of the two does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
