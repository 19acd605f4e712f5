"""The precision of a process, what the processes of a run share, and the memory that a process keeps."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d

from src.core.errors import UserError
from src.core.runtime import Runtime, fastest_precision, synchronised
from src.nn.encoder import create_encoder

ROOT = Path(__file__).parents[2]
SHARING = """
import sys
from pathlib import Path
import torch
from src.core.runtime import Runtime

with Runtime.create("fp32") as runtime:
    norm = torch.nn.BatchNorm2d(3)
    norm.running_mean.fill_(1.0 + runtime.rank)
    norm.num_batches_tracked.fill_(5 + runtime.rank)
    runtime.share_buffers(norm)
    assert norm.running_mean.tolist() == [1.0] * 3 and norm.num_batches_tracked == 5, norm.running_mean
    # not printed: lines of two processes may mix
    (Path(sys.argv[1]) / f"process {runtime.rank} of {runtime.world}").touch()
"""
LEAVING = """
import gc, sys, weakref
from pathlib import Path
from torch import distributed
from src.core.runtime import Runtime

barriers, wait = [], distributed.barrier

def remember(*given, **named):
    if (barrier := wait(*given, **named)) is not None:  # one that the caller waits for himself
        barriers.append(weakref.ref(barrier))
    return barrier

def train():
    with Runtime.create("fp32"):
        distributed.barrier = remember
        return weakref.ref(distributed.group.WORLD)

group = train()
gc.collect()
assert group() is not None and not distributed.is_initialized()
assert len(barriers) == 1 and barriers[0]() is not None
(Path(sys.argv[1]) / "left, not freed").touch()
"""


@pytest.mark.parametrize(("in_hardware", "expected"), [(True, "bf16"), (False, "fp16")])
def test_fastest_precision_takes_fp16_where_bf16_is_only_emulated(monkeypatch, in_hardware, expected):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: in_hardware or including_emulation
    )
    assert fastest_precision(on_gpu=True) == expected


def test_fastest_precision_of_a_cpu_is_fp32():
    assert fastest_precision(on_gpu=False) == "fp32"
    assert Runtime.create().precision == "fp32"


def test_create_refuses_a_second_precision():
    """accelerate has one for all of a process."""
    Runtime.create("fp32")
    assert Runtime.create("fp32").precision == "fp32"
    with pytest.raises(UserError, match="computes in fp32 already: start a new one for bf16"):
        Runtime.create("bf16")


def run_python(*command: str, **environment: str) -> str:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC", "GLIBC"))}
    done = subprocess.run(
        [sys.executable, *command],
        env=own | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def launch(script: str, folder: Path, processes: int) -> Path:
    """Run a script in several processes; the folder that it is given."""
    (folder / "script.py").write_text(script)
    (given := folder / "given").mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    run_python(*launcher, str(folder / "script.py"), str(given))
    return given


@pytest.mark.slow
def test_share_buffers_gives_every_process_the_statistics_of_the_first(tmp_path):
    ended = launch(SHARING, tmp_path, processes=2)
    assert sorted(path.name for path in ended.iterdir()) == ["process 0 of 2", "process 1 of 2"]


@pytest.mark.slow
def test_runtime_leaves_the_process_group_but_never_frees_it(tmp_path):
    """The destructor of the group may wait for a thread that waits for Python; a thread that frees the last
    barrier may want Python when it has ended."""
    assert (launch(LEAVING, tmp_path, processes=1) / "left, not freed").exists()


def test_synchronised_keeps_the_activations_of_timm_batchnorms():
    """timm's BatchNorms hold the activation behind them; torch's own conversion drops it."""
    encoder = create_encoder("test_efficientnet", 3).eval()
    assert any(isinstance(module, BatchNormAct2d) for module in encoder.modules())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = encoder(images)
        converted = synchronised(encoder).eval()
        torch.testing.assert_close(converted(images), before)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in converted.modules())


ALLOCATIONS = """
import resource
from pathlib import Path
import numpy as np
from src.core.runtime import keep_freed_memory

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

def held_mb():
    before = resident_mb()
    for _ in range(4):
        np.ones(8 << 20)  # 64 MB
    return resident_mb() - before

print(held_mb(), keep_freed_memory(), held_mb())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_keep_freed_memory_holds_it_but_heeds_the_environment():
    before, kept, after = run_python("-c", ALLOCATIONS).split()
    assert float(before) < 10 and kept == "True" and 60 < float(after) < 80
    assert run_python("-c", ALLOCATIONS, MALLOC_TRIM_THRESHOLD_="0").split()[1] == "False"
