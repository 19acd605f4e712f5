"""Several processes that share a batch train as one process does."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from voco_files import draw_anatomy, write_prepared

SCRIPT = Path(__file__).parents[1] / "train_voco.py"
STEPS = 20
COMMON = (
    *("--backbone", "test_convnext"),  # it normalises every image by itself
    *("--windows", "soft", "organ", "wide"),
    *("--canvas", "96", "--tile", "32", "--depth", "6", "--slices", "2", "--foreground", "0"),
    *("--batch", "4", "--projection", "32", "--dropout", "0", "--lr", "1e-3", "--warmup", "0.2"),
    *("--steps", str(STEPS), "--log-every", "1", "--save-every", "10", "--workers", "0"),
    *("--precision", "fp32"),
)


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("anatomy") / "set", draw_anatomy, series=6)


def train(data, output, *changes, processes=1):
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*launcher, SCRIPT, "--data", data, "--output", output, *COMMON, *changes],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def read_metrics(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("objective", ["overlap", "softmax"])
def test_two_processes_give_the_losses_of_one(anatomy, tmp_path, objective):
    """Each has half of the batch; comparisons between volumes reach across."""
    for processes in (1, 2):
        run = train(anatomy, tmp_path / str(processes), "--objective", objective, processes=processes)
        assert run.returncode == 0, run.stderr[-2000:]
        assert run.stdout.count(f"step {STEPS}/{STEPS}") == 1  # one process speaks
    one, two = read_metrics(tmp_path / "1"), read_metrics(tmp_path / "2")
    assert len(one) == len(two) == STEPS
    for first, second in zip(one, two, strict=True):
        for name in first:
            if name.startswith("loss"):
                assert float(second[name]) == pytest.approx(float(first[name]), rel=1e-4, abs=1e-6), (
                    name,
                    first["step"],
                )
        assert second["cross_trials"] == first["cross_trials"]


def test_processes_resume_what_one_process_began(anatomy, tmp_path):
    whole = train(anatomy, tmp_path / "whole", processes=2)
    assert whole.returncode == 0, whole.stderr[-2000:]
    output = tmp_path / "resumed"
    begun = train(anatomy, output)
    assert begun.returncode == 0, begun.stderr[-2000:]
    resumed = train(anatomy, output, processes=2)
    assert resumed.returncode == 0 and f"after step {STEPS} of {STEPS}" in resumed.stdout


def test_where_one_process_fails_every_process_ends_in_one_line(anatomy, tmp_path):
    """The other would wait for it for ever, or end in a traceback of the exchange."""
    data = tmp_path / "set"
    shutil.copytree(anatomy, data)
    slices = sorted(data.glob("images/*/*/*.png"))
    for path in slices[-12:]:  # of the last series: at each step it is one process's, or nobody's
        path.write_bytes(b"")
    run = train(data, tmp_path / "run", processes=2)
    lines = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert run.returncode != 0
    assert len(lines) == 2
    assert any("is damaged" in line for line in lines)
    assert any("lost the others" in line for line in lines)


def test_a_batch_that_cannot_be_shared_is_refused_in_one_line(anatomy, tmp_path):
    run = train(anatomy, tmp_path, "--batch", "3", processes=2)
    assert run.returncode != 0
    assert "error: option --batch 3" in run.stderr
