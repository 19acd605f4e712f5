"""The kaggle program, run as a subprocess: importing the package would log in, and may end this process."""

import codecs
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from src.submit.failures import KaggleError, explain
from src.submit.options import COMPETITION


def command_line(arguments: Sequence[str]) -> str:
    """The command as one types it."""
    return shlex.join(["kaggle", *arguments])


def run_kaggle(
    arguments: Sequence[str], action: str, *, competition: str = COMPETITION, shows: bool = False
) -> str:
    """Run the kaggle program and return all that it printed.

    Args:
        action: what it is to do, for the message of a failure.
        shows: pass on what it prints as it comes, as the progress of an upload.

    Raises:
        KaggleError: it is not installed, does not start, or failed.
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
        text = _read(process, shows)
    failure = explain(text, process.returncode, action, competition)
    if failure is not None:
        raise failure
    return text


def _find_program() -> str:
    """From PATH, or beside the Python that runs here, whose environment may not be activated."""
    found = shutil.which("kaggle")
    beside = Path(sys.executable).with_name("kaggle")
    if found is None and beside.is_file():
        found = str(beside)
    if found is None:
        raise KaggleError("missing", "there is no kaggle program: python -m pip install kaggle six")
    return found


def _read(process: subprocess.Popen, shows: bool) -> str:
    """All output; progress bars come without line ends, so it is passed on in pieces of any size."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pieces = []
    while data := os.read(process.stdout.fileno(), 65536):
        pieces.append(decoder.decode(data))
        if shows:
            sys.stderr.write(pieces[-1])
            sys.stderr.flush()
    return "".join(pieces)
