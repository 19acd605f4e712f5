"""The benchmark of GPUs, small and on a CPU."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from bench_gpu import GpuBenchOptions, Results, attempt, covered, main


def fail(part: str) -> None:
    raise RuntimeError(f"{part} cannot be captured\nand a second line")


def test_covered_counts_overlapping_kernels_once():
    assert covered([(5.0, 7.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5)]) == 5.0
    assert covered([]) == 0


@pytest.mark.slow
def test_attempt_records_the_error_of_a_process(tmp_path):
    results = Results(tmp_path / "gpu.json")
    results.begin()
    assert not attempt(results, "steps", fail, "plus")
    assert results.read()["steps"] == [
        {"part": "plus", "note": "fail: RuntimeError: plus cannot be captured"}
    ]


@pytest.mark.slow
def test_main_measures_a_training_and_infer(tmp_path):
    path = tmp_path / "gpu.json"
    figures = main(GpuBenchOptions(quick=True, parts=("cnn_lstm", "infer"), json=path))
    written = json.loads(path.read_text())
    assert all(written[table] == figures[table] for table in ("steps", "end to end", "infer"))
    assert [row["step"] for row in written["steps"]] == ["bare networks", "step, eager", "step, graph"]
    assert [(row["source"], row["workers"]) for row in written["end to end"]] == [
        *(("cache", 1), ("PNG", 1)),
        *(("cache", 2), ("PNG", 2)),
    ]
    assert min(row["s"] for row in written["end to end"]) > 0
    assert written["infer"][0]["wall_over_slowest"] > 0
