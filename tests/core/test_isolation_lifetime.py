"""A hang ends its child, and no child outlives its call, its thread or its parent."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from src.core.isolation import ChildCrashed, ChildStalled, call_isolated
from tests.helpers.isolation_work import plainly, sleep_with_the_lock_held, stop_itself, work_slowly

ROOT = Path(__file__).resolve().parents[2]


def is_free(lock: Path, within_s: float) -> bool:
    end = time.monotonic() + within_s
    with lock.open() as file:
        while time.monotonic() < end:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                time.sleep(0.01)
    return False


def wait_for(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


def is_reaped(pid: int) -> bool:
    """Whether this process has no such child any more, not even a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    ("function", "arguments", "last_step"),
    [
        (work_slowly, (1, 60), "slice 0"),
        (sleep_with_the_lock_held, (), "hanging"),
        (stop_itself, (), "stopping"),
    ],
)
def test_call_raises_child_stalled_after_silence(child, function, arguments, last_step):
    child.call(work_slowly, 1, 0)  # so that importing its module is not part of the silence
    pid = child.call(plainly, os.getpid)
    child.silence_limit_s = 0.5
    start = time.monotonic()
    with pytest.raises(ChildStalled, match=f"made no report for 0.5 s at: {last_step}") as caught:
        child.call(function, *arguments)
    assert 0.5 <= time.monotonic() - start < 10
    assert caught.value.last_step == last_step
    assert is_reaped(pid)
    child.silence_limit_s = 30
    assert child.call(plainly, abs, -3) == 3


def test_report_keeps_a_long_call_alive(child):
    child.call(work_slowly, 1, 0)
    child.silence_limit_s = 1.0
    start = time.monotonic()
    assert child.call(work_slowly, 30, 0.1) == "done"
    assert time.monotonic() - start > 2.5


def test_call_isolated_has_one_child_per_thread():
    pids, barrier = {}, threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait()
        pids[number] = {call_isolated(plainly, os.getpid) for _ in range(20)}
        with pytest.raises(ChildCrashed):
            call_isolated(plainly, os.abort)
        pids[number] |= {call_isolated(plainly, os.getpid)}

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [len(pids[number]) for number in range(4)] == [2, 2, 2, 2]
    assert len(set.union(*pids.values())) == 8
    assert all(is_reaped(pid) for pid in set.union(*pids.values()))


def test_child_uses_one_core_in_the_callers_folder(child, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert child.call(plainly, os.getenv, "OMP_NUM_THREADS") == "1"
    assert child.call(plainly, os.getcwd) == os.getcwd()
    monkeypatch.chdir(tmp_path)
    assert child.call(plainly, os.getcwd) == os.getcwd()


@pytest.fixture
def default_ctrl_c():
    """Python's own handler, which worker processes of pytest lack."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("seconds", [0.8, 60])
def test_call_interrupted_by_ctrl_c_ends_the_child(child, seconds, default_ctrl_c):
    pid = child.call(plainly, os.getpid)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        child.call(sleep_with_the_lock_held, seconds)
    assert time.monotonic() - start < 3
    assert is_reaped(pid)
    timer.join()
    assert child.call(plainly, abs, -3) == 3


def test_call_isolated_after_a_fork_leaves_the_parents_child_alone():
    pid = call_isolated(plainly, os.getpid)
    forked = os.fork()
    if forked == 0:
        code = 1
        try:
            code = 0 if call_isolated(plainly, os.getpid) != pid else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 0
    assert call_isolated(plainly, os.getpid) == pid


def test_call_isolated_of_a_script(tmp_path):
    """Modules in the working directory are ignored, and the child ends with the script."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    (tmp_path / "queue.py").write_text("raise SystemExit('the wrong module')")
    script = f"""import os, sys
sys.path[0] = {str(ROOT)!r}
from src.core.isolation import call_isolated
from tests.helpers.isolation_work import plainly
print(call_isolated(plainly, os.getcwd))
print(call_isolated(plainly, os.getpid))"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    folder, pid = done.stdout.splitlines()
    assert folder == os.path.realpath(tmp_path)
    assert is_reaped(int(pid))


@pytest.mark.parametrize(
    ("then", "limit_s", "within_s"),
    [("sleep", 60, 1.0), ("hang", 1, 5.0)],
    ids=["at once", "in a hang with the interpreter's lock held, by the limit of silence"],
)
def test_child_ends_with_a_killed_parent(tmp_path, then, limit_s, within_s):
    lock = tmp_path / "lock"
    code = f"""from pathlib import Path
from tests.helpers.isolation_work import hold
from src.core.isolation import call_isolated
call_isolated(hold, Path({str(lock)!r}), {then!r}, silence_limit_s={limit_s})"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_for(lock.with_suffix(".held"))
    assert not is_free(lock, 0.1)
    parent.kill()
    parent.wait()
    assert is_free(lock, within_s)


def test_child_not_started_says_why(child, monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no module named site' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(RuntimeError, match="could not be started: no module named site"):
        child.call(plainly, abs, -3)
    monkeypatch.undo()
    assert child.call(plainly, abs, -3) == 3


def test_child_has_a_session_of_its_own(child):
    """Ctrl-C in a terminal does not reach it."""
    assert child.call(plainly, os.getsid, 0) != os.getsid(0)
