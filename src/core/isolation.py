"""Work that may crash or hang, done in a child process.

A damaged file can take a C decoder down with its whole process, or keep it busy for ever. `call_isolated`
runs a function in a child that lives on between calls: a crash or a hang ends the child alone, and the next
call starts another. The children are plain processes in sessions of their own: daemonic workers may have
them, and Ctrl-C passes them by. They end when their parent ends, however it does. What the function prints
there is discarded. Linux and macOS.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar

from src.core.isolated_child import Board, report_step

__all__ = [
    "SILENCE_LIMIT_S",
    "Child",
    "ChildCrashed",
    "ChildFailed",
    "ChildNotStarted",
    "ChildStalled",
    "call_isolated",
    "report_step",
]

T = TypeVar("T")

SILENCE_LIMIT_S = 120.0
"""A slice takes milliseconds; a decoder that is busy with one for so long will not come back."""

START_LIMIT_S = 120.0
END_LIMIT_S = 5.0
TICK_S = 0.5
_SILENT = "gave no sign of life for {:g} s"

# The parent's sys.path goes along whole: the child finds what the parent finds, and nothing else that happens
# to lie in the working directory.
BOOT = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from src.core.isolated_child import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"
)
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class ChildFailed(Exception):
    """The child ended before it answered.

    `how` says what happened (`killed by signal 11 (SIGSEGV)`), `last_step` what `report_step` said last in
    this call, empty when it said nothing.
    """

    def __init__(self, how: str, last_step: str = "") -> None:
        super().__init__(how, last_step)  # without its arguments it could not be pickled
        self.how = how
        self.last_step = last_step

    def __str__(self) -> str:
        return f"child process {self.how}" + (f" at: {self.last_step}" if self.last_step else "")


class ChildCrashed(ChildFailed):
    """The child died by itself, or another killed it (`SIGKILL` is how a machine short of memory does it)."""


class ChildStalled(ChildFailed):
    """No sign of life for the limit of silence; the child was killed."""


class ChildNotStarted(RuntimeError):
    """A child could not be started: whatever is wrong with the machine, the work is not to blame."""


class Child:
    """A process that runs functions for one thread, started by the first call and again after a crash."""

    def __init__(self, silence_limit_s: float = SILENCE_LIMIT_S) -> None:
        """silence_limit_s: seconds without a sign of life after which a call is given up; may be changed."""
        self.silence_limit_s = silence_limit_s
        self._process: subprocess.Popen | None = None

    def call(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Run `function(*args, **kwargs)` in the child, in the working directory of the caller.

        Function, arguments and result are pickled, so the function must stand at the top of a module that the
        child can import. Its exceptions are raised here with their own type where it can be pickled, else as
        RuntimeError, with the child's traceback as a note.

        Raises:
            ChildCrashed: the child died.
            ChildStalled: neither result nor `report_step` for `silence_limit_s` seconds.
            ChildNotStarted: a child could not be started.
        """
        work = (self.silence_limit_s, _working_directory(), function, args, kwargs)
        request = pickle.dumps(work, pickle.HIGHEST_PROTOCOL)
        try:
            # It may have been killed meanwhile, or this process is a fork, whose poll finds no such child.
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._start()
            answer = self._exchange(request)
        except BaseException:  # Ctrl-C included: the answer to an abandoned call must not meet the next one
            self.close()
            raise
        returned, value = pickle.loads(answer)
        if returned:
            return value
        error, traceback_text = value
        error.add_note(f"In the child process:\n{traceback_text}")
        raise error

    def close(self) -> None:
        """Kill the child if there is one. Also done when the object goes and when the interpreter ends."""
        if self._process is not None:
            self._finalizer()
            self._process = None

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        with theirs, tempfile.TemporaryFile(buffering=0) as board:
            board.write(bytes(Board.SIZE))  # claims the disk space: a write to a mapped hole could kill
            descriptors = theirs.fileno(), board.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOT, *map(str, descriptors), ROOT, *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # the workers share the cores
                pass_fds=descriptors,
                start_new_session=True,
            )
            self._finalizer = weakref.finalize(self, _end, self._process, self._connection, os.getpid())
            self._board = Board(board.fileno())
        try:
            self._receive(START_LIMIT_S)
        except (ChildStalled, EOFError, OSError) as error:
            process = self._process
            self.close()
            message = process.stderr.read().decode(errors="replace").strip() or str(error) or _how(process)
            raise ChildNotStarted(f"a child process could not be started: {message}") from None
        self._process.stderr.close()

    def _exchange(self, request: bytes) -> bytes:
        process = self._process
        self._board.clear()
        try:
            self._connection.send_bytes(request)
            return self._receive(self.silence_limit_s)
        except (EOFError, OSError):
            pass
        # The system may need a moment between end of file and end.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_LIMIT_S)
        if process.returncode == -signal.SIGALRM:
            raise ChildStalled(_SILENT.format(self.silence_limit_s), self._board.text())
        raise ChildCrashed(_how(process), self._board.text())

    def _receive(self, limit_s: float) -> bytes:
        """The child's next message. Silence is counted in ticks that this process was awake for."""
        tick_s = min(TICK_S, limit_s / 10)
        silent_s, seen = 0.0, self._board.count()
        # until the child's first sign of life it imports what the function needs, from a cold disk perhaps
        limits_s = {True: max(limit_s, START_LIMIT_S), False: limit_s}
        while not self._connection.poll(tick_s):
            # End of file tells of an end, unless something that the function started holds the line open.
            if self._process.poll() is not None and not self._connection.poll():
                raise EOFError
            count = self._board.count()
            silent_s = silent_s + tick_s if count == seen else 0.0
            seen = count
            if silent_s >= limits_s[count == 0]:
                self._process.kill()
                raise ChildStalled(_SILENT.format(limits_s[count == 0]), self._board.text())
        return self._connection.recv_bytes()


class _Own(threading.local):
    def __init__(self) -> None:  # runs once in each thread
        self.child = Child()


_own = _Own()


def call_isolated(
    function: Callable[..., T], /, *args: Any, silence_limit_s: float = SILENCE_LIMIT_S, **kwargs: Any
) -> T:
    """`Child.call` with the calling thread's own child, which lives until the thread ends."""
    child = _own.child
    child.silence_limit_s = silence_limit_s
    return child.call(function, *args, **kwargs)


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was deleted; absolute paths still work
        return None


def _end(process: subprocess.Popen, connection: Connection, parent: int) -> None:
    """Kill a child and reap it; in a fork of its parent, only drop the line to it."""
    connection.close()
    if os.getpid() == parent:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel; it dies when that lets go
            process.wait(END_LIMIT_S)


def _how(process: subprocess.Popen) -> str:
    code = process.returncode
    if code is None:
        return "closed its line"
    if code >= 0:
        return f"ended with exit status {code}"
    names = {number.value: f" ({number.name})" for number in signal.Signals}
    return f"killed by signal {-code}{names.get(-code, '')}"
