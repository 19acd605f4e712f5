"""Work on a series that survives its files: what crashes or hangs a decoder costs an attempt, not the run."""

from collections.abc import Callable
from typing import TypeVar

import cv2

from src.core.isolation import SILENCE_LIMIT_S, ChildCrashed, ChildStalled, call_isolated
from src.ct.series import Rejected, SeriesError, UnreachableSeries
from src.prepare.grey_slices import Caution

_MOST_LEFT_OUT = 8


class KilledTwice(UnreachableSeries):
    """The process that read the series was killed, and again: the machine may be short of memory."""


Result = TypeVar("Result")


def with_caution(
    function: Callable[..., Result], *args: object, silence_limit_s: float = SILENCE_LIMIT_S
) -> Result:
    """Run `function(*args, caution=...)` in a child process, more carefully after each crash or hang.

    First with dicomsdl and pydicom, then with pydicom alone, then without the files that pydicom's decoders
    crash or hang on as well.

    Raises:
        SeriesError: raised by the function, or nothing helped; `UnreachableSeries` against silence.
        KilledTwice: not by a decoder, as it seems.
    """
    caution, killed = Caution(), False
    while True:
        try:
            return call_isolated(
                _on_one_thread, function, *args, caution=caution, silence_limit_s=silence_limit_s
            )
        except (ChildCrashed, ChildStalled) as failure:
            if "SIGKILL" in failure.how:  # no decoder does that, but a machine that is short of memory
                if killed:
                    raise KilledTwice("its process was killed twice: is there memory enough?") from None
                killed = True
            else:
                caution = _more_careful(caution, failure)


def _on_one_thread(function: Callable[..., Result], *args: object, caution: Caution) -> Result:
    cv2.setNumThreads(1)  # several children share the cores
    return function(*args, caution=caution)


def _more_careful(caution: Caution, failure: ChildCrashed | ChildStalled) -> Caution:
    if not caution.pydicom_only:
        return Caution(pydicom_only=True)
    what = "crashes" if isinstance(failure, ChildCrashed) else "hangs"
    known = {item.source for item in caution.left_out}
    if not failure.last_step or failure.last_step in known or len(known) == _MOST_LEFT_OUT:
        # a mount that does not answer looks like a decoder that hangs
        kind = UnreachableSeries if isinstance(failure, ChildStalled) else SeriesError
        raise kind(f"every decoder {what} on it")
    return Caution(True, (*caution.left_out, Rejected(failure.last_step, f"every decoder {what} on it")))
