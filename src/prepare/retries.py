"""Run a function on a series in a child process; after a crash or a hang, retry with safer readers."""

from collections.abc import Callable
from typing import TypeVar

import cv2

from src.core.isolation import SILENCE_LIMIT_S, ChildCrashed, ChildStalled, Report, call_isolated
from src.ct.series import READ_ALL, ReadSettings, Rejected, SeriesError, UnreachableSeries

_MAX_LEFT_OUT = 8

Result = TypeVar("Result")


def run_with_retries(
    function: Callable[..., Result], *args: object, silence_limit_s: float = SILENCE_LIMIT_S
) -> Result:
    """Run `function(*args, settings=..., report=...)` in a child process; retry after a crash or a hang.

    The first attempt uses dicomsdl and pydicom, the second pydicom alone, further ones skip the files that
    crash or hang pydicom's decoders too.

    Args:
        function: takes `ReadSettings` and a `Report`, which it calls with the name of each file it reads.

    Raises:
        SeriesError: raised by the function, or every retry failed.
        UnreachableSeries: a hang outside of any file, possibly caused by a disk; or the child was killed
            twice by SIGKILL, which the system sends when memory runs out.
    """
    settings, killed = READ_ALL, False
    while True:
        try:
            return call_isolated(
                _on_one_thread, function, *args, settings=settings, silence_limit_s=silence_limit_s
            )
        except (ChildCrashed, ChildStalled) as failure:
            if "SIGKILL" in failure.how:  # sent by a machine short of memory, not by a decoder
                if killed:
                    raise UnreachableSeries("its process was killed twice: is there memory enough?") from None
                killed = True
            else:
                settings = _safer(settings, failure)


def _on_one_thread(
    function: Callable[..., Result], *args: object, settings: ReadSettings, report: Report
) -> Result:
    cv2.setNumThreads(1)  # several children share the cores
    return function(*args, settings=settings, report=report)


def _safer(settings: ReadSettings, failure: ChildCrashed | ChildStalled) -> ReadSettings:
    if not settings.pydicom_only:
        return ReadSettings(pydicom_only=True)
    what = "crashes" if isinstance(failure, ChildCrashed) else "hangs"
    known = {item.source for item in settings.left_out}
    if not failure.last_step or failure.last_step in known or len(known) == _MAX_LEFT_OUT:
        # a mount that does not respond looks like a decoder that hangs
        kind = UnreachableSeries if isinstance(failure, ChildStalled) else SeriesError
        raise kind(f"every decoder {what} on it")
    rejected = Rejected(failure.last_step, f"every decoder {what} on it")
    return ReadSettings(True, (*settings.left_out, rejected))
