"""What the kaggle program says when something is wrong, in words that a user can act on.

The texts are those of its versions 2.2, some of which end with exit status 0, and of the answers of Kaggle's
servers that it prints.
"""

import re
from dataclasses import dataclass

from src.core.errors import UserError


@dataclass(frozen=True)
class Failure:
    """A kind of failure: how it is recognised, and what to do about it."""

    kind: str
    pattern: str
    advice: str
    """`{competition}` and `{text}` are filled in"""


LOGIN = (
    "run `kaggle auth login`, or make a token at https://www.kaggle.com/settings and put it where the kaggle "
    "program looks for it"
)

# The first that matches counts: the more telling texts stand before bare status codes.
FAILURES = (
    Failure(
        "incomplete",
        r"Upload unsuccessful",
        "a file did not arrive ({text}): the dataset lacks it, push again",
    ),
    Failure(
        "cancelled",
        r"User cancelled operation",
        "the kaggle program was interrupted: start again",
    ),
    Failure(
        "not starting",
        r"ModuleNotFoundError|ImportError",
        "the kaggle program does not start ({text}): python -m pip install kaggle six",
    ),
    Failure(
        "no credentials",
        r"Authentication required to call",
        "Kaggle does not know you, there are no credentials or they are no longer valid: " + LOGIN,
    ),
    Failure(
        "network",
        r"Max retries exceeded|ConnectionError|NameResolutionError|Failed to (resolve|establish)|"
        r"Connection (refused|reset|aborted)|timed out|ProxyError|SSLError|Network is unreachable",
        "Kaggle cannot be reached, is there a network? ({text})",
    ),
    Failure(
        "credentials",
        r"\b401\b|Unauthorized|Unauthenticated|Invalid credentials",
        "Kaggle refuses the credentials, they are wrong or no longer valid: " + LOGIN,
    ),
    Failure(
        "phone",
        r"phone (number|verif)",
        "Kaggle wants a verified phone number for this: https://www.kaggle.com/settings, Phone verification",
    ),
    Failure(
        "sessions",
        r"Maximum batch (GPU|CPU|TPU)? ?session",
        "too many notebooks of yours are running ({text}): wait for them, or stop some at "
        "https://www.kaggle.com/code",
    ),
    Failure(
        "quota",
        r"(GPU|TPU|accelerator|weekly).{0,40}quota",
        "the GPU hours of this week are used up ({text}): wait for the new week, or make the notebook with "
        "submit.py kernel --gpu false",
    ),
    Failure(
        "rules",
        r"accept.{0,40}rules|rules.{0,40}accept|\b403\b.*competitions|Permission 'competitions\.",
        "the rules of the competition are not accepted, as it seems: "
        "https://www.kaggle.com/competitions/{competition}/rules, with the account of the kaggle program",
    ),
    Failure(
        "title",
        r"already in use|slug must be between|title must be between|Default (slug|title) detected|409 Client",
        "Kaggle does not take this title or id ({text}): choose another --title and --id",
    ),
    Failure(
        "daily limit",
        r"(submission|daily) limit|maximum (number|allowed).{0,40}submission|submissions? (today|per day)",
        "Kaggle takes no further submission today ({text})",
    ),
    Failure(
        "busy", r"\b429\b|Too Many Requests|exhausted", "Kaggle asks to slow down ({text}): try again later"
    ),
    Failure(
        "server",
        r"\b50\d Server Error|Internal error|unavailable",
        "Kaggle has a fault of its own ({text}): try later",
    ),
    Failure(
        "not found",
        r"\b404\b|not found|Could not find competition",
        "Kaggle finds no such thing, are the id and the version right? ({text})",
    ),
    Failure(
        "refused",
        r"\b403\b|Forbidden|Permission '[\w.]+' was denied|Cannot access kernel",
        "Kaggle refuses access ({text})",
    ),
    Failure(
        "sources",
        r"not valid (dataset|competition) sources",
        "Kaggle does not attach all inputs to the notebook ({text}): is the dataset ready and yours, and are "
        "the rules of the competition accepted?",
    ),
)

ALWAYS_A_FAILURE = re.compile(
    r"Dataset creation error|Dataset version creation error|Kernel push error|Upload unsuccessful|"
    r"not valid (dataset|competition) sources|Could not find competition|User cancelled operation",
    re.IGNORECASE,
)
"""These texts mean a failure even where the program ends with exit status 0."""

_ABOUT_AN_ERROR = re.compile(r"error|invalid|denied|not valid|maximum|must", re.IGNORECASE)
_IN_PASSING = re.compile(r"\d+%\||Will retry in", re.IGNORECASE)
"""Progress bars, whose numbers may look like status codes, and faults that the program itself gets over."""

FINAL = frozenset(
    {"no credentials", "credentials", "rules", "not starting", "missing", "phone", "quota", "title"}
)
"""Kinds that stay until the user does something; all others may be over at the next try."""

NOT_THERE = frozenset({"not found", "refused"})
"""How looking at what does not exist fails: what is private and what is not there are told alike."""


class KaggleError(UserError):
    """The kaggle program failed.

    Args:
        kind: one of `FAILURES`, `missing` (there is no program), or `other`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def explain(text: str, status: int, action: str, competition: str) -> KaggleError | None:
    """The failure that a finished kaggle program tells of, None where it succeeded.

    Args:
        text: all that it printed.
        action: what it was to do, as in `upload the dataset`.
        competition: that the page of rules is to be shown of.
    """
    if status == 0 and not ALWAYS_A_FAILURE.search(text):
        return None
    lines = _lines(text)
    told = telling_line(lines)
    # What else is printed may speak of other things: it counts only where that line says nothing known.
    for candidates in ([told], lines):
        for failure in FAILURES:
            for line in candidates:
                if re.search(failure.pattern, line, re.IGNORECASE):
                    advice = failure.advice.format(competition=competition, text=line)
                    return KaggleError(failure.kind, f"could not {action}: {advice}")
    return KaggleError("other", f"could not {action}: the kaggle program says: {told} (exit status {status})")


def telling_line(lines: list[str]) -> str:
    """What went wrong: lines that always mean a failure; else the last about an error; else the last."""
    always = [line for line in lines if ALWAYS_A_FAILURE.search(line)]
    if always:
        return "; ".join(dict.fromkeys(always))
    about = [line for line in lines if _ABOUT_AN_ERROR.search(line)]
    return (about or lines or ["nothing"])[-1]


def _lines(text: str) -> list[str]:
    """What the program printed, without what it printed in passing."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    return [
        line for line in lines if line and (ALWAYS_A_FAILURE.search(line) or not _IN_PASSING.search(line))
    ]
