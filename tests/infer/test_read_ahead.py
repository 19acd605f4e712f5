"""Reading ahead: as they come, a few at a time, and nothing holds the program up."""

import threading
import time

import pytest

from src.infer.read_ahead import AHEAD, ReadAhead


def same(half):
    return half


def take_all(reader):
    taken = []
    while reader.left:
        result = reader.take(5.0)
        assert result is not None
        taken.append(result)
    return taken


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_item_is_read_once(jobs):
    reader = ReadAhead(lambda item: item + 1, lambda half: 2 * half, range(50), jobs)
    assert sorted(take_all(reader)) == list(range(2, 102, 2))


def test_one_thread_keeps_the_order():
    assert take_all(ReadAhead(str, same, range(20), 1)) == [str(item) for item in range(20)]


def test_a_slow_item_does_not_hold_up_the_others():
    gate = threading.Event()

    def read(item):
        if item == 0:
            gate.wait(10)
        return item

    reader = ReadAhead(read, same, range(4), 2)
    assert [reader.take(5.0) for _ in range(3)] == [1, 2, 3]
    assert reader.take(0.01) is None and reader.left == 1
    gate.set()
    assert reader.take(5.0) == 0 and reader.left == 0


def test_only_a_few_are_read_before_they_are_taken():
    begun = []

    def read(item):
        begun.append(item)
        return item

    reader = ReadAhead(read, same, range(100), 2)
    deadline = time.monotonic() + 5
    while len(begun) < 2 + AHEAD and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(begun) == 2 + AHEAD
    reader.take(5.0)
    deadline = time.monotonic() + 5
    while len(begun) < 3 + AHEAD and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(begun) == 3 + AHEAD


def test_after_a_stop_no_item_is_begun():
    begun = []

    def read(item):
        begun.append(item)
        return item

    reader = ReadAhead(read, same, range(100), 1)
    reader.take(5.0)
    reader.stop()
    while reader.take(0.2) is not None:
        pass
    assert len(begun) <= 2 + AHEAD


def test_the_next_item_is_read_while_one_is_finished():
    begun, gate = [], threading.Event()

    def read(item):
        begun.append(item)
        return item

    def finish(half):
        gate.wait(10)
        return half

    reader = ReadAhead(read, finish, range(100), 1)
    deadline = time.monotonic() + 5
    while len(begun) < 1 + AHEAD and time.monotonic() < deadline:
        time.sleep(0.01)
    assert begun == list(range(1 + AHEAD)) and reader.take(0.01) is None
    gate.set()
    assert reader.take(5.0) == 0
    reader.stop()


@pytest.mark.parametrize("where", ["read", "finish"])
def test_what_is_raised_is_not_lost(where):
    def fail(item):
        raise SystemExit(item)

    parts = (fail, same) if where == "read" else (same, fail)
    with pytest.raises(SystemExit):
        ReadAhead(*parts, [3], 1).take(5.0)
