"""A crash or a hang in the child costs one call, and no child outlives its parent."""

import ctypes
import fcntl
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from src.core.errors import UserError
from src.data.isolation import Child, ChildCrashed, ChildStalled, call_isolated, report_step

ROOT = Path(__file__).resolve().parents[1]
CORE_LIMIT = resource.getrlimit(resource.RLIMIT_CORE)


@pytest.fixture
def child():
    with closing(Child(silence_limit_s=30)) as child:
        yield child


# What the children run.


def crash(how: str, step: str = "slice 7") -> None:
    report_step("slice 6")
    report_step(step)
    if how == "abort":
        os.abort()
    elif how == "exit":
        os._exit(11)
    else:
        os.kill(os.getpid(), signal.SIGSEGV)


def work_slowly(steps: int, step_s: float) -> str:
    for step in range(steps):
        report_step(f"slice {step}")
        time.sleep(step_s)
    return "done"


def sleep_with_the_lock_held(seconds: float = 60) -> None:
    """Hang as a C decoder can: no other Python thread of the process runs."""
    report_step("hanging")
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def hold(lock: Path, then: str) -> None:
    """Hold a file lock, which the system gives back when the process ends, zombie or not."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lock.with_suffix(".held").touch()
        sleep_with_the_lock_held() if then == "hang" else time.sleep(60)


def fail(error: BaseException) -> None:
    raise error


class NeedsTwo(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def fail_unpicklably() -> None:
    raise NeedsTwo("this", "that")


def make_noise() -> str:
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        print("noise " * 50_000, file=stream, flush=True)
        os.write(descriptor, b"noise")
    return "done"


def large_array(megabytes: int):
    import numpy as np

    return np.arange(megabytes * 250_000, dtype=np.int32)


def cost_of_a_step(steps: int) -> float:
    start = time.perf_counter()
    for step in range(steps):
        report_step(f"1.2.840.113619.2/{step}.dcm")
    return (time.perf_counter() - start) / steps


def own_child() -> int:
    return call_isolated(os.getpid)


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


# Results and exceptions.


def test_a_result_comes_from_a_child_that_lives_on(child):
    pid = child.call(os.getpid)
    assert pid != os.getpid()
    assert child.call(os.getpid) == pid
    assert child.call(sorted, [3, 1, 2], reverse=True) == [3, 2, 1]


def test_time_between_calls_is_not_silence(child):
    pid = child.call(os.getpid)
    child.silence_limit_s = 0.2
    child.call(abs, -3)
    time.sleep(0.8)
    assert child.call(os.getpid) == pid


def test_an_exception_keeps_its_type_and_brings_the_childs_traceback(child):
    with pytest.raises(UserError) as caught:
        child.call(fail, UserError("no such folder"))
    assert str(caught.value) == "no such folder"
    assert "in fail" in caught.value.__notes__[0]
    with pytest.raises(FileNotFoundError) as caught:
        child.call(os.stat, "/no/such/file")
    assert caught.value.filename == "/no/such/file"


def test_an_exception_that_cannot_be_pickled_comes_as_a_runtime_error(child):
    with pytest.raises(RuntimeError, match="NeedsTwo: this and that"):
        child.call(fail_unpicklably)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_the_function_cannot_end_the_parent(child, error):
    pid = child.call(os.getpid)
    with pytest.raises(RuntimeError, match=type(error).__name__):
        child.call(fail, error)
    assert child.call(os.getpid) == pid


def test_what_cannot_be_pickled_is_an_error_of_that_call_alone(child):
    pid = child.call(os.getpid)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        child.call(lambda: None)
    with pytest.raises(TypeError, match="pickle"):
        child.call(threading.Lock)
    assert child.call(os.getpid) == pid


def test_a_large_result_comes_back(child):
    array = child.call(large_array, 20)
    assert array.nbytes == 20_000_000
    assert (array == large_array(20)).all()


def test_large_arguments_arrive(child):
    assert child.call(len, b"x" * 20_000_000) == 20_000_000


def test_printing_in_the_child_harms_and_shows_nothing(child, capfd):
    assert child.call(make_noise) == "done"
    assert capfd.readouterr() == ("", "")


# Crashes.


@pytest.mark.parametrize(
    ("how", "description"),
    [
        ("abort", f"killed by signal {signal.SIGABRT:d} (SIGABRT)"),
        ("segfault", f"killed by signal {signal.SIGSEGV:d} (SIGSEGV)"),
        ("exit", "ended with exit status 11"),
    ],
)
def test_a_crash_names_its_kind_and_last_step_and_the_next_call_works(child, how, description):
    with pytest.raises(ChildCrashed) as caught:
        child.call(crash, how)
    assert caught.value.how == description
    assert caught.value.last_step == "slice 7"
    assert str(caught.value) == f"child process {description} at: slice 7"
    assert child.call(abs, -3) == 3


def test_a_crash_before_the_first_step_does_not_name_an_older_one(child):
    child.call(work_slowly, 2, 0)
    with pytest.raises(ChildCrashed) as caught:
        child.call(os.abort)
    assert caught.value.last_step == ""


@pytest.mark.parametrize("step", ["", "Bauch, venös", "caf\udce9.dcm", "x" * 100_000, "é" * 100_000])
def test_any_text_can_be_a_step(child, step):
    with pytest.raises(ChildCrashed) as caught:
        child.call(crash, "exit", step)
    last_step = caught.value.last_step
    last_step.encode()  # fit for a table
    expected = step.encode("utf-8", "backslashreplace").decode()
    assert expected.startswith(last_step.rstrip("\ufffd"))
    assert len(last_step) >= min(len(step), 4000)


def test_a_step_costs_little(child):
    assert child.call(cost_of_a_step, 20_000) < 30e-6


def test_steps_outside_a_child_are_ignored():
    report_step("slice 0")
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_child_killed_between_calls_is_replaced_unnoticed(child):
    pid = child.call(os.getpid)
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert child.call(os.getpid) != pid


def test_a_kill_is_noticed_although_another_child_started_later(child):
    with closing(Child()) as later:
        pid = child.call(os.getpid)
        assert later.call(os.getpid) != pid
        timer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
        timer.start()
        start = time.monotonic()
        with pytest.raises(ChildCrashed, match="SIGKILL"):
            child.call(time.sleep, 60)
        assert time.monotonic() - start < 10
        timer.join()


def test_an_end_is_noticed_although_a_process_of_the_function_lives_on(child, tmp_path):
    with pytest.raises(ChildCrashed, match="exit status 11"):
        child.call(fork_and_exit, tmp_path / "pid")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def fork_and_exit(pid_file: Path) -> None:
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    pid_file.write_text(str(pid))
    os._exit(11)


@pytest.mark.skipif(CORE_LIMIT[1] == 0, reason="this system forbids core files anyway")
def test_a_crash_leaves_no_core_file(child):
    resource.setrlimit(resource.RLIMIT_CORE, (CORE_LIMIT[1], CORE_LIMIT[1]))
    try:
        assert child.call(resource.getrlimit, resource.RLIMIT_CORE) == (0, CORE_LIMIT[1])
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, CORE_LIMIT)


def test_the_child_can_time_itself_out_whatever_its_parent_ignores(child):
    handler = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        assert child.call(signal.getsignal, signal.SIGALRM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGALRM, handler)


def test_failures_can_be_pickled():
    for error in (
        ChildCrashed("killed by signal 9 (SIGKILL)", "slice 7"),
        ChildStalled("gave up", "slice 8"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), copy.how, copy.last_step) == (type(error), error.how, error.last_step)


# Silence.


def test_silence_is_ended_and_the_next_call_works(child):
    pid = child.call(os.getpid)
    child.silence_limit_s = 0.5
    start = time.monotonic()
    with pytest.raises(ChildStalled, match=r"no sign of life for 0.5 s at: slice 0") as caught:
        child.call(work_slowly, 1, 60)
    assert 0.5 <= time.monotonic() - start < 10
    assert caught.value.last_step == "slice 0"
    assert is_reaped(pid)
    child.silence_limit_s = 30
    assert child.call(abs, -3) == 3


def test_a_child_that_was_stopped_is_ended(child):
    pid = child.call(os.getpid)
    child.silence_limit_s = 0.5
    with pytest.raises(ChildStalled):
        child.call(os.kill, pid, signal.SIGSTOP)
    assert is_reaped(pid)


def test_a_hang_with_the_interpreters_lock_held_is_ended(child):
    child.call(work_slowly, 1, 0)  # so that importing this module is not part of the silence
    child.silence_limit_s = 0.5
    with pytest.raises(ChildStalled) as caught:
        child.call(sleep_with_the_lock_held)
    assert caught.value.last_step == "hanging"


def test_steps_keep_a_long_call_alive(child):
    child.call(work_slowly, 1, 0)
    child.silence_limit_s = 1.0
    start = time.monotonic()
    assert child.call(work_slowly, 30, 0.1) == "done"
    assert time.monotonic() - start > 2.5


# The life of the children.


def test_each_thread_has_its_own_child_which_ends_with_it():
    pids, barrier = {}, threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait()
        pids[number] = {call_isolated(os.getpid) for _ in range(20)}
        with pytest.raises(ChildCrashed):
            call_isolated(os.abort)
        pids[number] |= {call_isolated(os.getpid)}

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [len(pids[number]) for number in range(4)] == [2, 2, 2, 2]
    assert len(set.union(*pids.values())) == 8
    assert all(is_reaped(pid) for pid in set.union(*pids.values()))


def test_the_children_stay_within_one_core_and_see_the_callers_folder(child, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert child.call(os.getenv, "OMP_NUM_THREADS") == "1"
    assert child.call(os.getcwd) == os.getcwd()
    monkeypatch.chdir(tmp_path)
    assert child.call(os.getcwd) == os.getcwd()


def test_ctrl_c_and_the_terminal_pass_the_child_by(child):
    assert child.call(os.getsid, 0) != os.getsid(0)


@pytest.mark.parametrize("seconds", [0.8, 60])
def test_an_abandoned_call_is_ended_at_once_and_does_not_answer_the_next_one(child, seconds):
    pid = child.call(os.getpid)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        child.call(sleep_with_the_lock_held, seconds)
    assert time.monotonic() - start < 3
    assert is_reaped(pid)
    timer.join()
    assert child.call(abs, -3) == 3


def test_a_fork_leaves_its_parents_child_alone():
    pid = call_isolated(os.getpid)
    forked = os.fork()
    if forked == 0:
        code = 1
        try:
            code = 0 if call_isolated(os.getpid) != pid else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 0
    assert call_isolated(os.getpid) == pid


def run_python(code: str, folder: Path, **options) -> subprocess.Popen:
    """A parent that finds this module and, from its own working directory, nothing else of the project."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-c", f"import test_isolation as t, os, sys, time\n{code}"]
    return subprocess.Popen(command, cwd=folder, env=environment, **options)


def test_it_works_from_another_folder_even_one_with_a_package_of_the_same_name(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    (tmp_path / "queue.py").write_text("raise SystemExit('the wrong module')")
    script = f"""import os, sys
sys.path[0] = {str(ROOT)!r}
from src.data.isolation import call_isolated
print(call_isolated(os.getcwd))"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (os.path.realpath(tmp_path), "")


def test_children_end_with_the_interpreter(tmp_path):
    parent = run_python("print(t.own_child())", tmp_path, stdout=subprocess.PIPE)
    output, _ = parent.communicate(timeout=60)
    assert parent.returncode == 0
    assert is_reaped(int(output))


@pytest.mark.parametrize(
    ("then", "limit_s", "within_s"),
    [("sleep", 60, 1.0), ("hang", 1, 5.0)],
    ids=["at once", "in a hang with the interpreter's lock held, by the limit of silence"],
)
def test_a_killed_parent_takes_its_child_along(tmp_path, then, limit_s, within_s):
    lock = tmp_path / "lock"
    code = f"t.call_isolated(t.hold, t.Path({str(lock)!r}), {then!r}, silence_limit_s={limit_s})"
    parent = run_python(code, tmp_path)
    wait_for(lock.with_suffix(".held"))
    assert not is_free(lock, 0.1)
    parent.kill()
    parent.wait()
    assert is_free(lock, within_s)


def test_a_hang_while_the_parent_sleeps_counts_as_silence(tmp_path):
    lock = tmp_path / "lock"
    code = f"""try:
    t.call_isolated(t.hold, t.Path({str(lock)!r}), "hang", silence_limit_s=1)
except t.ChildStalled as error:
    print(error)"""
    parent = run_python(code, tmp_path, stdout=subprocess.PIPE, text=True)
    wait_for(lock.with_suffix(".held"))
    parent.send_signal(signal.SIGSTOP)
    assert is_free(lock, 5.0)
    parent.send_signal(signal.SIGCONT)
    assert parent.communicate(timeout=60)[0] == "child process gave no sign of life for 1 s at: hanging\n"


def test_a_child_that_cannot_start_says_why(child, monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no module named site' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(RuntimeError, match="could not be started: no module named site"):
        child.call(abs, -3)
    monkeypatch.undo()
    assert child.call(abs, -3) == 3
