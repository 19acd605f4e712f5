"""Wait for Kaggle: look again and again, show what changes, bear with faults that pass."""

import time
from collections.abc import Callable, Collection
from datetime import timedelta

from src.core.errors import UserError
from src.core.log import say, warn
from src.submit.failures import FINAL, KaggleError

PATIENCE = 10
"""Looks in a row that may fail, or show what was there before, or not yet show what is waited for."""
LOOK_LIMIT_S = 120.0
"""For one look, which takes seconds; then the network hangs."""
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
        later: what to do at a later time instead: a command that shows the same, for one.

    Raises:
        UserError: the time is up.
        KaggleError: `look` failed in a way that is final, or too often in a row.
    """
    begin = time.monotonic()
    shown, shown_at, failed = "", begin, 0
    while True:
        try:
            answer = look()
            failed = 0
        except KaggleError as error:
            failed += 1
            if error.kind in FINAL or failed > PATIENCE:
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
        time.sleep(poll_s)


class Doubt:
    """Right after something is handed over, Kaggle may still answer for what was there before.

    Args:
        answers: that may be old. They count once another was seen, or when they stay for `PATIENCE` looks.
    """

    def __init__(self, answers: Collection[str]) -> None:
        self._answers, self._looks = frozenset(answers), 0

    def covers(self, answer: str) -> bool:
        """Whether this answer to a look may be old."""
        if answer not in self._answers:
            self._answers = frozenset()
            return False
        self._looks += 1
        return self._looks <= PATIENCE
