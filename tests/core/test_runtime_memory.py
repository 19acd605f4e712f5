"""That a process keeps the memory that it frees, and uses it again."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOCATIONS = """
import resource, sys
from pathlib import Path
import numpy as np
from src.core.runtime import keep_freed_memory

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

print(keep_freed_memory() if sys.argv[1] == "keep" else False)
before = resident_mb()
for _ in range(4):
    np.ones(8 << 20)
print(resident_mb() - before)
"""


def kept_mb(how: str, **environment: str) -> tuple[bool, float]:
    """What the function said, and what the process holds after it freed 64 MB four times."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC", "GLIBC"))}
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATIONS, how],
        env=own | {"PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, held_mb = done.stdout.split()
    return kept == "True", float(held_mb)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again():
    kept, held_mb = kept_mb("keep")
    assert kept
    assert 60 < held_mb < 80
    assert kept_mb("leave")[1] < 10


def test_the_environment_of_the_user_stands():
    assert kept_mb("keep", MALLOC_TRIM_THRESHOLD_="0")[0] is False
