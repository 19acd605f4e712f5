"""Wait for Kaggle: look again and again, show what changes, bear with faults that pass."""

import time
from collections.abc import Callable
from datetime import timedelta

from src.core.errors import UserError
from src.core.log import say, warn
from src.submit.failures import PASSING, KaggleError

PATIENCE = 10
"""Looks in a row that may fail."""
SIGN_OF_LIFE_S = 600.0


def wait_for(
    what: str,
    look: Callable[[], str],
    is_over: Callable[[str], bool],
    *,
    poll_s: float,
    limit_s: float,
    later: str,
) -> str:
    """Call `look` until `is_over` says so of its answer, which is returned.

    Args:
        what: is waited for, as it is shown.
        later: command that shows the same at a later time.

    Raises:
        UserError: the time is up.
        KaggleError: `look` failed, in a way that does not pass, or too often in a row.
    """
    begin = time.monotonic()
    shown, shown_at, failed = "", begin, 0
    while True:
        time.sleep(poll_s)
        try:
            answer = look()
            failed = 0
        except KaggleError as error:
            failed += 1
            if error.kind not in PASSING or failed > PATIENCE:
                raise
            warn(f"{error}; trying again")
            answer = ""
        now = time.monotonic()
        if answer and (answer != shown or now - shown_at > SIGN_OF_LIFE_S):
            say(f"{timedelta(seconds=round(now - begin))}  {what}: {answer}")
            shown, shown_at = answer, now
        if answer and is_over(answer):
            return answer
        if now - begin > limit_s:
            state, after = shown or "without an answer", timedelta(seconds=round(limit_s))
            raise UserError(
                f"{what} is still {state} after {after}; it goes on at Kaggle, look later with: {later}"
            )
