"""Seconds and memory until each script answers: `--help` of all, a submission checked, a small table scored.

    python benchmarks/bench_startup.py --json startup.json

Every command runs in a new process; figures are the best of three tries (--quick: one). `CPU s` is user and
system time, which a busy machine changes little; `MB` is the peak of resident memory.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness import BenchOptions, run_main

from src.core.config import ROOT
from src.core.files import write_table
from src.core.log import format_table, say
from src.core.targets import COLUMNS, TARGETS

SCRIPTS = (
    *("prepare_data", "train_voco", "train_seg", "segment"),
    *("train_cls", "score", "infer", "submit"),
)

RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    with open("/proc/self/status") as status:
        print(*(line for line in status if line.startswith("VmHWM")), file=sys.stderr)
"""
"""Runs a script and prints its peak memory; the one that the system counts includes this process's, too."""


def write_tables(folder: Path, patients: int = 200) -> None:
    """labels.csv of random patients, and oof.csv and submission.csv that predict them."""
    rng = np.random.default_rng(0)
    labels = pd.DataFrame({"patient_id": range(patients)})
    for columns in TARGETS.values():
        grade = np.where(rng.random(patients) < 0.3, rng.integers(1, len(columns), patients), 0)
        labels[list(columns)] = np.eye(len(columns), dtype=int)[grade]
    predictions = labels.astype(dict.fromkeys(COLUMNS, float))
    predictions[list(COLUMNS)] += rng.random((patients, len(COLUMNS)))
    write_table(labels, folder / "labels.csv")
    write_table(predictions, folder / "submission.csv")
    write_table(predictions.assign(fold=labels.patient_id % 5), folder / "oof.csv")


def commands(folder: Path) -> dict[str, list[str]]:
    """The arguments of Python, by what the table calls them."""
    submission = str(folder / "submission.csv")
    return {
        **{f"{script}.py --help": [f"{script}.py", "--help"] for script in SCRIPTS},
        "infer.py --check": ["infer.py", "--check", submission, "--sample", submission],
        "score.py": ["score.py", "--oof", str(folder / "oof.csv"), "--labels", str(folder / "labels.csv")],
    }


def measure(arguments: list[str], tries: int) -> dict[str, float]:
    """CPU seconds, seconds and MB of a command, the least of some tries each."""
    runs = []
    for _ in range(tries):
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", RUN, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        runs.append((cpu, seconds, int(done.stderr.split()[-2]) * 1024 / 1e6))
    return dict(zip(("CPU s", "s", "MB"), map(min, zip(*runs, strict=True)), strict=True))


def main(options: BenchOptions) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        write_tables(Path(folder))
        rows = [
            {"command": name, **measure(arguments, tries=1 if options.quick else 3)}
            for name, arguments in commands(Path(folder)).items()
        ]
    say(format_table(rows, digits=2))
    return {"rows": rows}


if __name__ == "__main__":
    run_main(main, BenchOptions)
