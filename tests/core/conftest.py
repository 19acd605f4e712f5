"""A child process, closed after each test."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from src.core.isolation import Child


@pytest.fixture
def child() -> Iterator[Child]:
    with closing(Child(silence_limit_s=30)) as child:
        yield child
