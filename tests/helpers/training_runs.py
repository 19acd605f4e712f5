"""Trainings that are interrupted, and comparison of what two trainings leave."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from src.nn import training
from src.nn.training import load_checkpoint

TIMES = ["seconds", "volumes_per_s"]


class Interrupted(Exception):
    pass


@contextmanager
def interrupted_after_saves(count: int = 1) -> Iterator[None]:
    """The training inside writes `count` checkpoints, and ends by an exception before the next one."""
    save, saved = training.save_checkpoint, []

    def save_or_stop(path: Path, content: dict[str, Any]) -> None:
        if len(saved) == count:
            raise Interrupted
        save(path, content)
        saved.append(path)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(training, "save_checkpoint", save_or_stop)
        yield


def assert_same_training(one: Path, other: Path) -> None:
    """Both folders hold the same checkpoint and metrics to the last bit, but for times and options."""
    assert_equal(*(load_checkpoint(run / "last.pt") | {"seconds": 0, "options": 0} for run in (one, other)))
    assert_equal(*(read_metrics(run).to_dict("list") for run in (one, other)))


def read_metrics(run: Path) -> pd.DataFrame:
    """metrics.csv as text, without times."""
    return pd.read_csv(run / "metrics.csv", dtype=str, keep_default_na=False).drop(
        columns=TIMES, errors="ignore"
    )


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where
