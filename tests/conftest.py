"""A tiny phantom, prepared once for all tests that need real files of the whole line."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

# The tests are about a CPU, which gives the same numbers every time, whatever the machine has besides.
if os.environ.get("KIT_DEVICE") != "gpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# before torch is imported, and for every process that a test starts: threads of two test workers that wait
# for each other on the same cores cost three times the processor time of one thread each
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import prepare_data
from src.data import folds
from src.phantom import __main__ as phantom


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> SimpleNamespace:
    """10 training and 3 test patients at 64 px: `raw`, `prepared`, `labels`, `folds` (2), `sample`, `marks`.

    All training series have masks.
    """
    folder = tmp_path_factory.mktemp("tiny")
    raw, prepared = folder / "raw", folder / "prepared"
    size = "--patients 10 --test-patients 3 --matrix 64 --spacing-z-mm 18 --segmentation-rate 1"
    phantom.main(f"--output {raw} --seed 1 --jobs 2 {size}".split())
    prepare_data.main(f"--input {raw} --output {prepared} --size 48 --jobs 2".split())
    tables = f"--labels {raw}/train.csv --series {raw}/train_series_meta.csv"
    folds.main(f"{tables} --n-folds 2 --output {folder}/folds.csv".split())
    return SimpleNamespace(
        raw=raw,
        prepared=prepared,
        labels=raw / "train.csv",
        folds=folder / "folds.csv",
        sample=raw / "sample_submission.csv",
        marks=raw / "image_level_labels.csv",
    )


@pytest.fixture(scope="session")
def tiny_run(tiny, tmp_path_factory) -> Path:
    """A run of train_cls.py on the tiny phantom, of two folds; tests do not write into it."""
    from tests.helpers.infer_runs import train_small  # torch takes seconds: not for tests of ct

    return train_small(tiny, tmp_path_factory.mktemp("tiny_run") / "run")


@pytest.fixture
def run_arguments(tiny, tmp_path):
    """The command line of a train_cls run of seconds; a test adds what it is about."""

    def arguments(output: str = "run", **changes: object) -> list[str]:
        options = {
            "data": tiny.prepared,
            "labels": tiny.labels,
            "folds": tiny.folds,
            "output": tmp_path / output,
            "backbone": "test_efficientnet",
            "slices": 4,
            "crop": 32,
            "hidden": 8,
            "epochs": 2,
            "batch": 4,
            "tta": "none",
            "workers": 0,
        }
        options.update(changes)
        return [
            part
            for name, value in options.items()
            for part in (f"--{name.replace('_', '-')}", *str(value).split())
        ]

    return arguments
