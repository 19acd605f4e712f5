"""The kaggle program, run as a subprocess: importing the package would log in, and may end this process."""

import codecs
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from src.submit.failures import KaggleError, explain
from src.submit.options import COMPETITION

_LINE_END = re.compile(r"(?<=[\r\n])")
_SECRET = re.compile(r"\s*(proxy-)?authorization\s*:", re.IGNORECASE)
"""A header that the program prints when it is told to print its requests."""


def command_line(arguments: Sequence[str]) -> str:
    """The command as one types it."""
    return shlex.join(["kaggle", *arguments])


def run_kaggle(
    arguments: Sequence[str],
    action: str,
    *,
    competition: str = COMPETITION,
    shows: bool = False,
    limit_s: float | None = None,
) -> str:
    """Run the kaggle program and return all that it printed, less lines with credentials.

    Args:
        action: what it is to do, for the message of a failure.
        competition: that it is about.
        shows: pass on what it prints as it comes, as the progress of an upload.
        limit_s: after which it is ended; as long as it takes by default.

    Raises:
        KaggleError: it is not installed, does not start, takes too long, or failed.
    """
    program = _find_program()
    try:
        process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,  # a question would wait for an answer unseen
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise KaggleError("not starting", f"{program} does not start: {error.strerror}") from None
    with process:
        try:
            text = _read(process, shows, limit_s)
        except TimeoutError:
            process.kill()
            raise KaggleError(
                "network",
                f"could not {action}: no answer of the kaggle program in {limit_s:g} s, is there a network?",
            ) from None
    failure = explain(text, process.returncode, action, competition)
    if failure is not None:
        raise failure
    return text


def _find_program() -> str:
    """Beside the Python that runs here, whose environment has the required version; else from PATH."""
    beside = Path(sys.executable).with_name("kaggle")
    found = str(beside) if beside.is_file() else shutil.which("kaggle")
    if found is None:
        raise KaggleError("missing", "there is no kaggle program: python -m pip install kaggle six")
    return found


def _read(process: subprocess.Popen, shows: bool, limit_s: float | None) -> str:
    """All output, line by line; those of progress bars end with a carriage return.

    Raises:
        TimeoutError: the time is up, and the process still runs.
    """
    end = None if limit_s is None else time.monotonic() + limit_s
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    kept: list[str] = []
    rest, data = "", b"-"
    while data:
        wait_s = None if end is None else max(0.0, end - time.monotonic())
        if not select.select([process.stdout], [], [], wait_s)[0]:
            raise TimeoutError
        data = os.read(process.stdout.fileno(), 65536)
        *lines, rest = _LINE_END.split(rest + decoder.decode(data, final=not data))
        for line in lines if data else [*lines, rest]:
            if _SECRET.match(line):
                continue
            kept.append(line)
            if shows:
                sys.stderr.write(line)
                sys.stderr.flush()
    return "".join(kept)
