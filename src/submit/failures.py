"""What the kaggle program says when something is wrong, in words that a user can act on.

The texts are those of its versions 1.7 and 2.2, some of which end with exit status 0, and of the answers of
Kaggle's servers that it prints.
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
        "not starting",
        r"ModuleNotFoundError|ImportError",
        "the kaggle program does not start ({text}): python -m pip install kaggle six",
    ),
    Failure(
        "no credentials",
        r"Authentication required to call|Could not find kaggle\.json|"
        r"Missing (username|key) in configuration",
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
        r"phone",
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
    Failure("busy", r"\b429\b|Too Many Requests", "Kaggle asks to slow down ({text}): try again later"),
    Failure("server", r"\b50\d Server Error", "Kaggle has a fault of its own ({text}): try later"),
    Failure(
        "not found",
        r"\b404\b|not found|Could not find competition",
        "Kaggle finds no such thing, are the id and the version right? ({text})",
    ),
    Failure(
        "refused",
        r"\b403\b|Forbidden|[Pp]ermission '[\w.]+' was denied|Cannot access kernel",
        "Kaggle refuses access ({text})",
    ),
    Failure(
        "sources",
        r"not valid (dataset|competition) sources",
        "Kaggle does not attach all inputs to the notebook ({text}): is the dataset ready and yours, and are "
        "the rules of the competition accepted?",
    ),
)

# Texts that mean a failure even where the program ends with exit status 0.
SAID_SO = re.compile(
    r"Dataset creation error|Dataset version creation error|Kernel push error|Upload unsuccessful|"
    r"not valid (dataset|competition) sources|Could not find competition|No kernel specified",
    re.IGNORECASE,
)

PASSING = frozenset({"network", "busy", "server"})
"""Kinds that may be over at the next try."""


class KaggleError(UserError):
    """The kaggle program failed.

    Args:
        kind: one of `FAILURES`, or `other`.
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
    if status == 0 and not SAID_SO.search(text):
        return None
    told = telling_line(text)
    for failure in FAILURES:
        if re.search(failure.pattern, text, re.IGNORECASE):
            advice = failure.advice.format(competition=competition, text=told)
            return KaggleError(failure.kind, f"could not {action}: {advice}")
    return KaggleError("other", f"could not {action}: the kaggle program says: {told} (exit status {status})")


def telling_line(text: str) -> str:
    """The line that says what went wrong: one that speaks of an error, else the last."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    about = [line for line in lines if re.search(r"error|invalid|denied|not valid|maximum|must", line, re.I)]
    return (about or lines or ["nothing"])[-1]
