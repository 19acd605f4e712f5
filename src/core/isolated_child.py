"""The inside of a child process of `src.core.isolation`: it answers calls until its parent ends.

All that a child needs before its first call is here, and nothing else, so that it starts fast.
"""

import mmap
import os
import pickle
import signal
import struct
import threading
from multiprocessing.connection import Connection
from typing import Any, NoReturn


class Board:
    """Memory shared by parent and child: how often the child reported a step, and the latest one."""

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


_board: Board | None = None
_alarm_s = 0.0


def report_step(text: str) -> None:
    """Say inside the child what the function works on now: a sign of life, and `last_step` should it crash.

    Costs microseconds. Does nothing in a process that is not a child.
    """
    if _board is not None:
        _board.write(text)
        _set_alarm()


def serve(socket_fd: int, board_fd: int) -> NoReturn:
    """Answer calls until the parent ends. Only for the interpreter that `Child` starts."""
    import queue
    import resource

    global _board
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # A data set with a thousand damaged files must not leave a thousand core files.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    connection = Connection(socket_fd)
    _board = Board(board_fd)
    os.close(board_fd)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(connection, requests), daemon=True).start()
    connection.send_bytes(b"ready")
    os.dup2(1, 2)  # standard error led to the parent while a start could fail; from here it is discarded too
    while True:
        connection.send_bytes(_answer(requests.get()))


def _read_requests(connection: Connection, requests: Any) -> NoReturn:
    """Pass requests on. The line ends with the parent, and so does this process, even in a call."""
    try:
        while True:
            requests.put(connection.recv_bytes())
    finally:
        os._exit(1)


def _answer(request: bytes) -> bytes:
    global _alarm_s
    try:
        limit_s, folder, function, args, kwargs = pickle.loads(request)
        _alarm_s = 2 * limit_s
        report_step("")  # what the function needs is imported: from here on silence counts
        if folder is not None:
            os.chdir(folder)
        return pickle.dumps((True, function(*args, **kwargs)), pickle.HIGHEST_PROTOCOL)
    except BaseException as error:  # sys.exit in the function is its mistake, not this process's end
        return _pickled_error(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _set_alarm() -> None:
    """Have the system kill this process after twice the limit of silence.

    The parent kills it earlier. But when the parent is gone and a C function hangs with the interpreter's
    lock held, `_read_requests` cannot run, and the process would stay for ever.
    """
    signal.setitimer(signal.ITIMER_REAL, _alarm_s)


def _pickled_error(error: BaseException) -> bytes:
    import traceback

    text = "".join(traceback.format_exception(error))
    try:
        # Only Exception: nothing that a function does there may end the parent, as SystemExit would.
        faithful = isinstance(error, Exception) and type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        faithful = False
    if not faithful:
        error = RuntimeError("".join(traceback.format_exception_only(error)).strip())
    return pickle.dumps((False, (error, text)))
