"""A function in a child gives its result or its exception, and its crash costs one call."""

import os
import pickle
import resource
import signal
import threading
import time
from contextlib import closing

import pytest

from src.core.errors import UserError
from src.core.isolation import Child, ChildCrashed, ChildStalled
from tests.helpers.isolation_work import (
    crash,
    fail,
    fail_unpicklably,
    fork_and_exit,
    make_noise,
    plainly,
    work_slowly,
)

CORE_LIMIT = resource.getrlimit(resource.RLIMIT_CORE)


def test_call_keeps_the_child(child):
    """Also after a pause that is longer than the silence allowed during a call."""
    pid = child.call(plainly, os.getpid)
    assert pid != os.getpid()
    child.silence_limit_s = 0.2
    assert child.call(plainly, sorted, [3, 1, 2], reverse=True) == [3, 2, 1]
    time.sleep(0.8)
    assert child.call(plainly, os.getpid) == pid


def test_call_raises_exceptions_of_the_function(child):
    with pytest.raises(UserError) as caught:
        child.call(fail, UserError("no such folder"))
    assert str(caught.value) == "no such folder"
    assert "in fail" in caught.value.__notes__[0]
    with pytest.raises(FileNotFoundError) as caught:
        child.call(plainly, os.stat, "/no/such/file")
    assert caught.value.filename == "/no/such/file"


def test_call_raises_runtime_error_for_an_exception_that_cannot_be_pickled(child):
    with pytest.raises(RuntimeError, match="NeedsTwo: this and that"):
        child.call(fail_unpicklably)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_call_turns_system_exit_into_runtime_error(child, error):
    pid = child.call(plainly, os.getpid)
    with pytest.raises(RuntimeError, match=type(error).__name__):
        child.call(fail, error)
    assert child.call(plainly, os.getpid) == pid


def test_call_of_values_that_cannot_be_pickled(child):
    pid = child.call(plainly, os.getpid)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        child.call(plainly, lambda: None)
    with pytest.raises(TypeError, match="pickle"):
        child.call(plainly, threading.Lock)
    assert child.call(plainly, os.getpid) == pid


def test_call_with_large_arguments_and_results(child):
    assert child.call(plainly, bytes.upper, b"x" * 20_000_000) == b"X" * 20_000_000


def test_call_discards_printed_text(child, capfd):
    assert child.call(make_noise) == "done"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("how", "description"),
    [
        ("abort", f"killed by signal {signal.SIGABRT:d} (SIGABRT)"),
        ("segfault", f"killed by signal {signal.SIGSEGV:d} (SIGSEGV)"),
        ("exit", "ended with exit status 11"),
    ],
)
def test_call_raises_child_crashed_with_the_last_step(child, how, description):
    with pytest.raises(ChildCrashed) as caught:
        child.call(crash, how)
    assert caught.value.how == description
    assert caught.value.last_step == "slice 7"
    assert str(caught.value) == f"child process {description} at: slice 7"
    assert child.call(plainly, abs, -3) == 3


def test_call_raises_child_crashed_without_an_older_step(child):
    child.call(work_slowly, 2, 0)
    with pytest.raises(ChildCrashed) as caught:
        child.call(plainly, os.abort)
    assert caught.value.last_step == ""


@pytest.mark.parametrize(
    "step",
    ["", "Bauch, venös", "caf\udce9.dcm", "x" * 100_000, "é" * 100_000],
    ids=["nothing", "accents", "not UTF-8", "long", "long accents"],  # pytest hands them to processes
)
def test_report_takes_any_text(child, step):
    with pytest.raises(ChildCrashed) as caught:
        child.call(crash, "exit", step)
    last_step = caught.value.last_step
    last_step.encode()  # fit for a table
    expected = step.encode("utf-8", "backslashreplace").decode()
    assert expected.startswith(last_step.rstrip("\ufffd"))
    assert len(last_step) >= min(len(step), 4000)


def test_call_replaces_a_child_killed_between_calls(child):
    pid = child.call(plainly, os.getpid)
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert child.call(plainly, os.getpid) != pid


def test_call_notices_a_kill_beside_a_later_child(child):
    with closing(Child()) as later:
        pid = child.call(plainly, os.getpid)
        assert later.call(plainly, os.getpid) != pid
        timer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
        timer.start()
        start = time.monotonic()
        with pytest.raises(ChildCrashed, match="SIGKILL"):
            child.call(plainly, time.sleep, 60)
        assert time.monotonic() - start < 10
        timer.join()


def test_call_notices_an_end_although_a_grandchild_lives_on(child, tmp_path):
    with pytest.raises(ChildCrashed, match="exit status 11"):
        child.call(fork_and_exit, tmp_path / "pid")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest.mark.skipif(CORE_LIMIT[1] == 0, reason="this system forbids core files anyway")
def test_child_leaves_no_core_file(child):
    resource.setrlimit(resource.RLIMIT_CORE, (CORE_LIMIT[1], CORE_LIMIT[1]))
    try:
        assert child.call(plainly, resource.getrlimit, resource.RLIMIT_CORE) == (0, CORE_LIMIT[1])
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, CORE_LIMIT)


def test_child_handles_sigalrm_whatever_its_parent_ignores(child):
    handler = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        assert child.call(plainly, signal.getsignal, signal.SIGALRM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGALRM, handler)


def test_child_failed_can_be_pickled():
    for error in (
        ChildCrashed("killed by signal 9 (SIGKILL)", "slice 7"),
        ChildStalled("gave up", "slice 8"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), copy.how, copy.last_step) == (type(error), error.how, error.last_step)
