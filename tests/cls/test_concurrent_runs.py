"""Commands of train_cls.py that train different folds of one run at the same time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import train_cls
from src.core.errors import UserError
from src.core.run_folder import is_in_use, only_writer

ROOT = Path(__file__).resolve().parents[2]


def start(arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train_cls.py"), *arguments]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as in the test's own process
    return subprocess.Popen(command, env=one_thread, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


@pytest.fixture
def training_fold_0(run_arguments, tmp_path):
    """A process that trains fold 0 of `run` for longer than a test."""
    process = start(run_arguments(fold="0", epochs=10_000))
    wait_for(tmp_path / "run" / "run.json", process)
    yield process
    process.kill()
    process.communicate()


def test_train_folds_at_the_same_time_like_one_after_the_other(run_arguments, tmp_path):
    processes = [start(run_arguments(fold=str(fold))) for fold in (0, 1)]
    for process in processes:
        assert process.wait() == 0, process.communicate()[1]
    train_cls.main(run_arguments("one_by_one"))
    for name in ("oof_series.csv", "oof.csv", "scores.csv"):
        together, alone = (pd.read_csv(tmp_path / run / name) for run in ("run", "one_by_one"))
        pd.testing.assert_frame_equal(together, alone, rtol=1e-3)
    assert len(pd.read_csv(tmp_path / "run" / "oof.csv")) == 10


@pytest.mark.slow
def test_train_folds_refuses_the_fold_of_another_command(training_fold_0, run_arguments, tmp_path):
    for fold in ({"fold": "0"}, {}, {"fold": "0", "resume": "never"}):
        with pytest.raises(UserError, match=r"another run is writing to .*fold0"):
            train_cls.main(run_arguments(epochs=10_000, **fold))
    assert not is_in_use(tmp_path / "run" / "fold1")


def test_train_folds_refuses_other_options_before_the_first_checkpoint(run_arguments, tmp_path):
    """The record of the other command counts from its start, not from its first checkpoint."""
    train_cls.main(run_arguments(fold="1", epochs=1))
    record = (tmp_path / "run" / "run.json").read_text()
    options = (tmp_path / "run" / "config.yaml").read_text()
    again = {"epochs": 1, "resume": "never"}
    with only_writer(tmp_path / "run" / "fold0"):
        with pytest.raises(UserError, match="--hidden 8, not 4"):
            train_cls.main(run_arguments(fold="1", hidden=4, **again))
        train_cls.main(run_arguments(fold="1", workers=1, **again))
    assert (tmp_path / "run" / "run.json").read_text() == record
    assert (tmp_path / "run" / "config.yaml").read_text() == options


@pytest.mark.slow
def test_train_folds_continues_a_killed_fold(training_fold_0, run_arguments, tmp_path):
    wait_for(tmp_path / "run" / "fold0" / "last.pt", training_fold_0)
    assert is_in_use(tmp_path / "run" / "fold0")
    training_fold_0.send_signal(signal.SIGKILL)
    training_fold_0.wait()
    assert not is_in_use(tmp_path / "run") and not is_in_use(tmp_path / "run" / "fold0")
    with pytest.raises(UserError, match="--epochs 10000, not 2"):
        train_cls.main(run_arguments(fold="1"))
    train_cls.main(run_arguments(resume="never"))
    assert len(pd.read_csv(tmp_path / "run" / "oof.csv")) == 10
