"""Runs that several tests of inference share, and patience with a loaded machine."""

from pathlib import Path

import pytest

from src.core import isolation
from src.infer import stack_sources
from tests.helpers.infer_runs import train_small


@pytest.fixture(autouse=True)
def long_limits(monkeypatch):
    """A machine under load starts and runs a reader's process slowly, which must not pass for a hang."""
    monkeypatch.setattr(isolation, "START_LIMIT_S", 600.0)
    monkeypatch.setattr(stack_sources, "SILENCE_LIMIT_S", 300.0)


@pytest.fixture(scope="session")
def tta_run(tiny, tmp_path_factory) -> Path:
    """A run of two folds with two flips and two offsets of the slices."""
    return train_small(tiny, tmp_path_factory.mktemp("tta_run") / "tta", "--seed 1 --tta none h --offsets 2")
