"""Run the kaggle program, add advice to its errors, and wait for Kaggle.

The program runs as a subprocess: importing the package would log in, and may end this process. The expected
messages are those of version 2.2, some of which come with exit status 0.
"""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from src.core.errors import UserError
from src.core.log import say, warn

PATIENCE = 10
"""Number of consecutive polls that may fail, or still return the previous state."""
POLL_LIMIT_S = 120.0
"""Time limit of one poll, which takes seconds."""
REPEAT_S = 600.0
"""An unchanged state is printed again after this time."""


class Advice(NamedTuple):
    """Advice on an error of the kaggle program."""

    pattern: str
    text: str
    is_final: bool = True
    """whether the error remains until the user acts, so that polling again is useless"""


ADVICE = (
    Advice(
        r"Authentication required|\b401\b|Unauthenticated|Unauthorized|Invalid credentials",
        "run `kaggle auth login`, or put a new token of https://www.kaggle.com/settings where the kaggle "
        "program looks for it",
    ),
    Advice(r"ModuleNotFoundError|ImportError", "install the program again: python -m pip install kaggle six"),
    Advice(
        r"phone (number|verif)",
        "verify your phone number: https://www.kaggle.com/settings, Phone verification",
    ),
    Advice(
        r"accept.{0,40}rules|rules.{0,40}accept|\b403\b.*competitions|'competitions\.[\w.]+' was denied",
        "open the page of the competition, tab Rules, with the account of the kaggle program",
    ),
    Advice(
        r"(GPU|TPU|accelerator|weekly).{0,40}quota",
        "wait for the new week (`kaggle quota` shows it), or make the notebook with submit.py kernel "
        "--gpu false",
    ),
    Advice(r"already in use|409 Client Error", "choose another --title and --id"),
    Advice(
        r"Max retries exceeded|ConnectionError|NameResolutionError|Failed to (resolve|establish)|"
        r"Connection (refused|reset|aborted)|timed out|ProxyError|SSLError|Network is unreachable|no answer",
        "is there a network?",
        is_final=False,
    ),
    Advice(r"Upload unsuccessful", "the dataset lacks this file: push again"),
    Advice(
        r"not valid (dataset|competition) sources",
        "is the dataset ready and yours, and are the rules of the competition accepted?",
    ),
)

_ERRORS = re.compile(
    r"(Dataset|Dataset version) creation error|Kernel push error|Upload unsuccessful|not valid \w+ sources|"
    r"Could not find competition|User cancelled operation"
)
"""Messages that mean an error even with exit status 0."""


class KaggleError(UserError):
    """The kaggle program failed.

    Args:
        reason: the program's message about it, one line.
    """

    def __init__(self, action: str, reason: str) -> None:
        advice = next((each for each in ADVICE if re.search(each.pattern, reason, re.IGNORECASE)), None)
        super().__init__(f"could not {action}: {reason}" + (f" - {advice.text}" if advice else ""))
        self.is_final = advice is not None and advice.is_final
        self.means_absent = bool(re.search(r"was denied|not found|\b40[34]\b", reason, re.IGNORECASE))
        """whether the dataset or notebook may not exist: Kaggle answers alike for private and missing ones"""


def command_line(arguments: Sequence[str]) -> str:
    """Return the command as typed in a shell."""
    return shlex.join(["kaggle", *arguments])


def run_kaggle(
    arguments: Sequence[str], action: str, *, show: bool = False, limit_s: float | None = None
) -> str:
    """Run the kaggle program and return its output.

    Args:
        action: action of the command, for error messages: `upload the dataset`.
        show: also print its output as it arrives, such as the progress of an upload.
        limit_s: time limit in seconds.

    Raises:
        KaggleError: the program is not installed, does not start, takes too long, or failed.
    """
    # The program beside this Python has the required version.
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    program = shutil.which("kaggle", path=os.pathsep.join(places))
    if program is None:
        raise KaggleError(action, "there is no kaggle program: python -m pip install kaggle six")
    # Buffered output would put errors before earlier lines; verbose output contains credentials.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VERBOSE")}
    try:
        process = subprocess.Popen(
            [program, *arguments],
            env=environment | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,  # it must not wait for input
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise KaggleError(action, f"the kaggle program does not start: {error}") from None
    lines = []
    with process:
        is_late = threading.Event()
        timer = threading.Timer(limit_s or threading.TIMEOUT_MAX, lambda: (is_late.set(), process.kill()))
        timer.daemon = True
        timer.start()
        # newline="": lines of a progress bar end with a carriage return
        for line in io.TextIOWrapper(process.stdout, encoding="utf-8", errors="replace", newline=""):
            lines.append(line)
            if show:
                print(line, end="", file=sys.stderr, flush=True)
        timer.cancel()
    if show and lines and not lines[-1].endswith(("\n", "\r")):
        print(file=sys.stderr)  # the message of a submission lacks a newline
    if is_late.is_set():
        raise KaggleError(action, f"no answer of the kaggle program in {limit_s:g} s")
    if reason := _find_error([line.strip() for line in lines], process.returncode):
        raise KaggleError(action, reason)
    return "".join(lines)


def _find_error(lines: Sequence[str], status: int) -> str:
    """Return the lines about the error; empty if there was none."""
    errors = [line for line in lines if _ERRORS.search(line)]
    if errors or not status:
        return "; ".join(dict.fromkeys(errors))
    if help_of_login := [line for line in lines if line.startswith("Authentication required")]:
        return help_of_login[0]
    return next((line for line in reversed(lines) if line), f"exit status {status} of the kaggle program")


def wait_for(
    what: str,
    poll: Callable[[], str],
    is_over: Callable[[str], bool],
    *,
    poll_s: float,
    limit_s: float,
    later: str,
    before: str | None = None,
) -> str:
    """Call `poll` until its state satisfies `is_over`; print each new state, and return the last.

    Args:
        what: name of the awaited result, for messages.
        later: how to check later, for the error message when the time is up.
        before: previous state, which Kaggle may still return. It counts after another state, or after
            `PATIENCE` polls.

    Raises:
        UserError: the time is up.
        KaggleError: a poll failed with a final error, or more than `PATIENCE` in a row failed.
    """
    begin = time.monotonic()
    printed, printed_at = "", begin
    polls = failures = 0
    while True:
        state = ""
        try:
            state = poll()
            polls, failures = polls + 1, 0
        except KaggleError as error:
            failures += 1
            if error.is_final or failures > PATIENCE:
                raise
            warn(f"{error}; trying again")
        now = time.monotonic()
        is_old = state == before and polls <= PATIENCE
        if state and (state != printed or now - printed_at > REPEAT_S):
            remark = ", as before" if is_old else ""
            say(f"{timedelta(seconds=round(now - begin))}  {what}: {state}{remark}")
            printed, printed_at = state, now
        if state and not is_old:
            before = None
            if is_over(state):
                return state
        if now - begin > limit_s:
            last, after = printed or "without an answer", timedelta(seconds=round(limit_s))
            raise UserError(
                f"{what} is still {last} after {after}; it goes on at Kaggle, look later with: {later}"
            )
        time.sleep(poll_s)
