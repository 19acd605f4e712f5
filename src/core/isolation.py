"""Run functions in a child process, so that a crash or a hang does not end the parent.

A damaged file can crash a C decoder together with its process, or make it hang. `call_isolated` runs a
function in a child process that is kept between calls: a crash or a hang ends only the child, and the next
call starts another. The children are plain processes in their own sessions, so daemonic workers can start
them and Ctrl-C does not reach them. They end with their parent, even if it is killed. Output that the
function prints is discarded. Linux and macOS.
"""

import contextlib
import mmap
import os
import pickle
import queue
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
Report = Callable[[str], None]
"""Callback that reports each step to the parent, as proof of life and for `last_step` after a crash."""


def no_report(step: str) -> None:
    """A `Report` for functions that run in this process."""


SILENCE_LIMIT_S = 120.0
"""Seconds without a report after which a function is considered to hang."""

START_LIMIT_S = 120.0
END_LIMIT_S = 5.0
TICK_S = 0.5
_SILENT = "made no report for {:g} s"

# The child gets the parent's whole sys.path, so that it finds the same modules, not those of its folder.
BOOT = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from src.core.isolation import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"
)
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class ChildFailed(Exception):
    """The child ended before it answered.

    `how` describes the end (`killed by signal 11 (SIGSEGV)`); `last_step` is the last report of the call,
    empty if there was none.
    """

    def __init__(self, how: str, last_step: str = "") -> None:
        super().__init__(how, last_step)  # pickling requires the arguments
        self.how = how
        self.last_step = last_step

    def __str__(self) -> str:
        return f"child process {self.how}" + (f" at: {self.last_step}" if self.last_step else "")


class ChildCrashed(ChildFailed):
    """The child died or was killed (with SIGKILL by a machine short of memory)."""


class ChildStalled(ChildFailed):
    """The child sent no report within the silence limit and was killed."""


class ChildNotStarted(RuntimeError):
    """A child could not be started, because of the machine rather than the function."""


class Child:
    """A process that runs functions for one thread, started by the first call and restarted after a crash."""

    def __init__(self, silence_limit_s: float = SILENCE_LIMIT_S) -> None:
        """silence_limit_s: seconds without a report after which a call is ended; may be changed."""
        self.silence_limit_s = silence_limit_s
        self._process: subprocess.Popen | None = None

    def call(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Run `function(*args, report=report, **kwargs)` in the child, in the caller's working directory.

        `report` is a `Report` that the function calls at each step of its work; a call takes microseconds.
        Function, arguments and result are pickled, so the function must be defined at the top level of a
        module that the child can import. Its exceptions are raised here with their own type if they can be
        pickled, else as RuntimeError, with the child's traceback as a note.

        Raises:
            ChildCrashed: the child died.
            ChildStalled: neither result nor report for `silence_limit_s` seconds.
            ChildNotStarted: a child could not be started.
        """
        work = (self.silence_limit_s, _working_directory(), function, args, kwargs)
        request = pickle.dumps(work, pickle.HIGHEST_PROTOCOL)
        try:
            # The child may have been killed, or this process is a fork, whose poll finds no such child.
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._start()
            answer = self._exchange(request)
        except BaseException:  # also Ctrl-C: the next call must not receive an abandoned call's answer
            self.close()
            raise
        returned, value = pickle.loads(answer)
        if returned:
            return value
        error, traceback_text = value
        error.add_note(f"In the child process:\n{traceback_text}")
        raise error

    def close(self) -> None:
        """Kill the child if there is one. Also called on garbage collection and at interpreter exit."""
        if self._process is not None:
            self._finalizer()
            self._process = None

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        with theirs, tempfile.TemporaryFile(buffering=0) as board:
            board.write(bytes(_Board.SIZE))  # allocates the disk space: a write to a mapped hole could kill
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
            self._board = _Board(board.fileno())
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
        # The process may end shortly after end of file.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_LIMIT_S)
        if process.returncode == -signal.SIGALRM:
            raise ChildStalled(_SILENT.format(self.silence_limit_s), self._board.text())
        raise ChildCrashed(_how(process), self._board.text())

    def _receive(self, limit_s: float) -> bytes:
        """Receive the child's next message. Only ticks that this process was awake for count as silence."""
        tick_s = min(TICK_S, limit_s / 10)
        silent_s, seen = 0.0, self._board.count()
        # Until its first report the child imports the function's modules, possibly from a slow disk.
        limits_s = {True: max(limit_s, START_LIMIT_S), False: limit_s}
        while not self._connection.poll(tick_s):
            # A child's end shows as end of file, unless a process that it started keeps the line open.
            if self._process.poll() is not None and not self._connection.poll():
                raise EOFError
            count = self._board.count()
            silent_s = silent_s + tick_s if count == seen else 0.0
            seen = count
            if silent_s >= limits_s[count == 0]:
                self._process.kill()
                raise ChildStalled(_SILENT.format(limits_s[count == 0]), self._board.text())
        return self._connection.recv_bytes()


class _ThreadsChild(threading.local):
    def __init__(self) -> None:  # runs once in each thread
        self.child = Child()


_threads_child = _ThreadsChild()


def call_isolated(
    function: Callable[..., T], /, *args: Any, silence_limit_s: float = SILENCE_LIMIT_S, **kwargs: Any
) -> T:
    """Run `Child.call` with the calling thread's own child, which lives until the thread ends."""
    child = _threads_child.child
    child.silence_limit_s = silence_limit_s
    return child.call(function, *args, **kwargs)


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # the folder was deleted; absolute paths still work
        return None


def _end(process: subprocess.Popen, connection: Connection, parent: int) -> None:
    """Kill a child and reap it; in a fork of its parent, only close the connection."""
    connection.close()
    if os.getpid() == parent:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel may delay its end
            process.wait(END_LIMIT_S)


def _how(process: subprocess.Popen) -> str:
    code = process.returncode
    if code is None:
        return "closed its line"
    if code >= 0:
        return f"ended with exit status {code}"
    names = {number.value: f" ({number.name})" for number in signal.Signals}
    return f"killed by signal {-code}{names.get(-code, '')}"


class _Board:
    """Memory shared by parent and child: the number of reports in this call, and the latest one."""

    SIZE = 8192
    HEADER = struct.Struct("=QH")  # count, bytes of text

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, self.SIZE)

    def clear(self) -> None:
        self.HEADER.pack_into(self._memory, 0, 0, 0)

    def write(self, text: str) -> None:
        encoded = text.encode("utf-8", "backslashreplace")[: self.SIZE - self.HEADER.size]
        self._memory[self.HEADER.size : self.HEADER.size + len(encoded)] = encoded
        self.HEADER.pack_into(self._memory, 0, self.count() + 1, len(encoded))

    def count(self) -> int:
        return self.HEADER.unpack_from(self._memory)[0]

    def text(self) -> str:
        length = self.HEADER.unpack_from(self._memory)[1]
        return self._memory[self.HEADER.size : self.HEADER.size + length].decode("utf-8", "replace")


# Inside the child process.


def serve(socket_fd: int, board_fd: int) -> NoReturn:
    """Answer calls until the parent ends. Only for the interpreter that `Child` starts."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # A data set with a thousand damaged files must not produce a thousand core files.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    connection = Connection(socket_fd)
    board = _Board(board_fd)
    os.close(board_fd)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(connection, requests), daemon=True).start()
    connection.send_bytes(b"ready")
    os.dup2(1, 2)  # stderr reached the parent during the start; from here on it is discarded
    while True:
        connection.send_bytes(_answer(requests.get(), board))


def _read_requests(connection: Connection, requests: "queue.SimpleQueue[bytes]") -> NoReturn:
    """Queue requests. When the parent ends, the connection closes and this process exits, even in a call."""
    try:
        while True:
            requests.put(connection.recv_bytes())
    finally:
        os._exit(1)


def _answer(request: bytes, board: _Board) -> bytes:
    try:
        limit_s, folder, function, args, kwargs = pickle.loads(request)

        def report(step: str) -> None:
            board.write(step)
            # The parent kills a silent child. But if the parent is gone and a C function hangs while it holds
            # the GIL, `_read_requests` cannot run: then the system's alarm ends this process.
            signal.setitimer(signal.ITIMER_REAL, 2 * limit_s)

        report("")  # the function's modules are imported: from here on silence counts
        if folder is not None:
            os.chdir(folder)
        return pickle.dumps((True, function(*args, report=report, **kwargs)), pickle.HIGHEST_PROTOCOL)
    except BaseException as error:  # sys.exit in the function must not end this process
        return _pickled_error(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _pickled_error(error: BaseException) -> bytes:
    text = "".join(traceback.format_exception(error))
    try:
        # Only Exception: an error of the function, such as SystemExit, must not end the parent.
        faithful = isinstance(error, Exception) and type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        faithful = False
    if not faithful:
        error = RuntimeError("".join(traceback.format_exception_only(error)).strip())
    return pickle.dumps((False, (error, text)))
