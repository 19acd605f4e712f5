"""Push the notebook, which runs it, and wait until it has run."""

import re

from src.core.errors import UserError
from src.core.log import say
from src.submit.failures import FINAL, NOT_THERE, KaggleError
from src.submit.kaggle_program import command_line, run_kaggle
from src.submit.kernel_folder import Kernel
from src.submit.options import PushOptions
from src.submit.waiting import LOOK_LIMIT_S, Doubt, wait_for

_ENDED = ("complete", "error", "cancelrequested", "cancelacknowledged")


def push_command(options: PushOptions) -> list[str]:
    """Arguments of the kaggle program that upload the notebook and run it."""
    return ["kernels", "push", "-p", str(options.kernel)]


def status_command(kernel: Kernel) -> list[str]:
    """Arguments of the kaggle program that ask whether the notebook has run."""
    return ["kernels", "status", kernel.id]


def run_notebook(options: PushOptions, kernel: Kernel) -> str:
    """Push the notebook and wait until it has run.

    Returns:
        The number of its version, `N` where the kaggle program did not tell it.

    Raises:
        UserError: the notebook failed, or did not end in the time of `--kernel-hours`.
        KaggleError: the kaggle program failed.
    """
    # The status is that of the newest version, which for some looks may be the one before.
    doubt = Doubt(_find_old_answers(kernel))
    told = run_kaggle(push_command(options), "push the notebook", competition=kernel.competition)
    say(next((line for line in told.splitlines() if "pushed" in line), "the notebook is pushed"))
    text = ""

    def look() -> str:
        nonlocal text
        text = _read_status(kernel)
        status = plain_status(text)
        return f"{status}, perhaps of the version before" if doubt.covers(status) else status

    status = wait_for(
        f"notebook {kernel.id}",
        look,
        lambda answer: answer in _ENDED,
        poll_s=options.poll_seconds,
        limit_s=options.kernel_hours * 3600,
        later=command_line(status_command(kernel)),
    )
    if status != "complete":
        said = re.search(r'Failure message: "(.*)"', text)
        why = f" ({said[1]})" if said else ""
        log = command_line(["kernels", "logs", kernel.id])
        raise UserError(f"the notebook {kernel.id} ended with {status}{why}; see its log with: {log}")
    pushed = re.search(r"Kernel version (\d+) successfully pushed", told)
    return pushed[1] if pushed else "N"


def plain_status(text: str) -> str:
    """`cancelrequested` of `has status "KernelWorkerStatus.CANCEL_REQUESTED"`; else what was said."""
    match = re.search(r'has status "(?:\w+\.)?(\w+)"', text)
    return match[1].replace("_", "").lower() if match else text.strip()


def _find_old_answers(kernel: Kernel) -> tuple[str, ...]:
    """How a version that was there before the push may show as ended after it."""
    try:
        before = plain_status(_read_status(kernel))
    except KaggleError as error:
        if error.kind in FINAL:
            raise
        return () if error.kind in NOT_THERE else _ENDED
    return (before,) if before in _ENDED else _ENDED


def _read_status(kernel: Kernel) -> str:
    action = "see the notebook's status"
    return run_kaggle(status_command(kernel), action, competition=kernel.competition, limit_s=LOOK_LIMIT_S)
