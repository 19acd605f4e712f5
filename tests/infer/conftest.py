"""Runs that several tests of inference share."""

from pathlib import Path

import pytest

from tests.helpers.infer_runs import train_small


@pytest.fixture(scope="session")
def tta_run(tiny, tmp_path_factory) -> Path:
    """A run of two folds with two flips and two offsets of the slices."""
    return train_small(tiny, tmp_path_factory.mktemp("tta_run") / "tta", "--seed 1 --tta none h --offsets 2")
