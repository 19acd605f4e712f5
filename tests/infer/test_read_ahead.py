"""Series are read ahead, a few at a time; nothing blocks a run."""

import math
import threading
import time

import pytest

from src.infer import read_ahead
from src.infer.budget import RunEnds, TimeBudget
from src.infer.ensemble import EnsembleSubset
from src.infer.read_ahead import AHEAD, ReadAhead


class Source:
    """Series "0", "1", ... of as many patients; `begun` are those whose decoding began."""

    def __init__(self, decode=int, make_stacks=lambda decoded: decoded):
        self.begun, self._decode, self._make_stacks = [], decode, make_stacks

    def decode(self, patient_id, series_id):
        self.begun.append(int(patient_id))
        return self._decode(patient_id)

    def make_stacks(self, decoded):
        return {"number": self._make_stacks(decoded)}, None


def reader_of(source, count, jobs=1):
    return ReadAhead(source, [(str(number), "") for number in range(count)], jobs)


def read(reader):
    """The series of a reader, without a time limit."""
    budget = TimeBudget(1, [EnsembleSubset((1,), True, (1,), False)], math.inf, started=0.0)
    return reader.read(budget)


def numbers(reader):
    return [series.stacks["number"] for series in read(reader)]


def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert condition()


def test_read_ahead_reads_every_series_once():
    assert sorted(numbers(reader_of(Source(), 50, jobs=3))) == list(range(50))


def test_read_ahead_keeps_the_order_with_one_thread():
    assert numbers(reader_of(Source(), 20)) == list(range(20))


def test_read_ahead_is_not_held_up_by_a_slow_series():
    gate = threading.Event()

    def decode(patient_id):
        if patient_id == "0":
            gate.wait(10)
        return int(patient_id)

    reader = reader_of(Source(decode), 4, jobs=2)
    ready = read(reader)
    assert [next(ready).stacks["number"] for _ in range(3)] == [1, 2, 3]
    assert reader.left == 1
    gate.set()
    assert [series.key for series in ready] == [("0", "")] and reader.left == 0


def test_read_ahead_reads_only_a_few_before_they_are_taken():
    source = Source()
    ready = read(reader_of(source, 100, jobs=2))
    wait_until(lambda: len(source.begun) == 2 + AHEAD)
    next(ready)
    wait_until(lambda: len(source.begun) == 3 + AHEAD)


def test_read_ahead_decodes_the_next_series_while_one_is_cut():
    gate = threading.Event()
    source = Source(make_stacks=lambda decoded: gate.wait(10) and decoded)
    reader = reader_of(source, 100)
    wait_until(lambda: source.begun == list(range(1 + AHEAD)))
    gate.set()
    assert next(read(reader)).stacks["number"] == 0
    reader.stop()


def test_read_ahead_begins_no_series_after_a_stop():
    source = Source()
    reader = reader_of(source, 100)
    next(read(reader))
    reader.stop()
    time.sleep(0.2)
    assert len(source.begun) <= 2 + AHEAD


@pytest.mark.parametrize("part", ["decode", "make_stacks"])
@pytest.mark.parametrize("error", [KeyError("tag"), SystemExit(3)])
def test_read_ahead_reports_whatever_is_raised(part, error):
    def fail(_):
        raise error

    (series,) = read(reader_of(Source(**{part: fail}), 1))
    assert series.reason.startswith(type(error).__name__)


def test_read_ahead_gives_up_where_nothing_can_be_read(monkeypatch):
    monkeypatch.setattr(read_ahead, "STUCK_S", 0.1)
    monkeypatch.setattr(read_ahead, "WAIT_S", 0.05)
    gate = threading.Event()
    with pytest.raises(RunEnds, match="no series could be read for"):
        next(read(reader_of(Source(lambda _: gate.wait(20)), 1)))
    gate.set()
