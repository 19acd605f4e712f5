"""Kaggle's side of push and submit, for the tests of the real kaggle program."""

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
