"""Commands whose /dev/shm has little room."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_with_shared_memory(size: str, command: Sequence[Any], before: str = "true") -> tuple[int, str, str]:
    """Run a command from the root of the repository with a /dev/shm of its own.

    Args:
        size: its size, as mount takes it.
        before: shell command that runs first.

    Returns:
        Exit status, stdout and stderr.
    """
    private = f'mount -t tmpfs -o size={size} tmpfs /dev/shm || exit 99; {before}; "$@"'
    finished = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", private, "sh", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    if finished.returncode in (1, 99) and "Traceback" not in finished.stderr:
        pytest.skip(f"no /dev/shm of its own: {finished.stderr}")
    return finished.returncode, finished.stdout, finished.stderr
