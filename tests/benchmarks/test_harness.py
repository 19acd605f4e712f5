"""What benchmarks share: options and figures of a run, and processes that end with their parent."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from harness import BenchOptions, median_ratio, run_benchmark

from src.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def count_things(options: BenchOptions) -> dict[str, int]:
    return {"things": 2 if options.quick else 20}


def test_run_benchmark_writes_figures_with_machine_and_options(tmp_path, capsys):
    run_benchmark(count_things, BenchOptions, ["--quick", "--json", f"{tmp_path}/figures.json"])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["things"] == 2 and figures["options"]["quick"] is True
    assert figures["machine"] in capsys.readouterr().out
    with pytest.raises(UserError, match="unknown option --quik; did you mean --quick"):
        run_benchmark(count_things, BenchOptions, ["--quik"])


def test_median_ratio_is_of_neighbours_in_time():
    assert median_ratio([2.0, 4.0, 60.0], [1.0, 2.0, 20.0]) == 2.0


def test_begin_process_ends_with_a_killed_parent():
    code = f"""
import multiprocessing, os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "benchmarks")!r}]
from harness import begin_process
spawn = multiprocessing.get_context("spawn")
pool = ProcessPoolExecutor(1, spawn, initializer=begin_process, initargs=(1,))
pool.submit(os.getpid).result()
pool.submit(time.sleep, 120)
os.kill(os.getpid(), signal.SIGKILL)
"""
    # returns once no process holds the pipes of the output: one that is left would
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=90)
    assert finished.returncode == -signal.SIGKILL, finished.stderr.decode()
