"""Kaggle's side of push and submit for the real kaggle program, and a missing package registry."""

import os
from collections.abc import Iterator

import pytest

from tests.helpers.kaggle_server import KaggleMachine


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Iterator[KaggleMachine]:
    """The real kaggle program with a server that answers as Kaggle does."""
    home = tmp_path / "home"
    home.mkdir()
    try:
        machine = KaggleMachine(home, monkeypatch)
    except OSError as error:
        pytest.skip(f"the kaggle program needs a network of its own: {error}")
    yield machine
    machine.close()


@pytest.fixture
def no_registry(monkeypatch) -> None:
    """pip finds nothing: no registry answers."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
