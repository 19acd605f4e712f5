"""Upload a bundle and a notebook, and wait until the notebook has run."""

import json
import re
from pathlib import Path

from src.core.errors import UserError
from src.core.log import say, warn
from src.submit.bundle import METADATA, Bundle, read_bundle
from src.submit.failures import KaggleError
from src.submit.kernel import Kernel, read_kernel
from src.submit.options import PushOptions
from src.submit.program import command_line, run_kaggle
from src.submit.waiting import wait_for

# Kaggle's uploader leaves folders out unless told to pack them; the server unpacks zip archives again.
FOLDERS = ("--dir-mode", "zip")
NOT_THERE = {"not found", "refused"}
"""How the status of a dataset that does not exist fails: as of 2.2 Kaggle answers 403, before that 404."""
STALE_LOOKS = 10


def push(options: PushOptions) -> None:
    """Create the dataset or a version of it, push the notebook, wait for each, and say what came out.

    Raises:
        UserError: folders that do not belong together, or a notebook that failed.
        KaggleError: the kaggle program failed.
    """
    bundle, kernel = read_bundle(options.bundle), read_kernel(options.kernel)
    _check(options, bundle, kernel)
    create = ["datasets", "create", "-p", str(options.bundle), *FOLDERS]
    version = ["datasets", "version", "-p", str(options.bundle), "-m", options.message, *FOLDERS]
    push_it = ["kernels", "push", "-p", str(options.kernel)]
    if options.dry_run:
        say(f"{command_line(_status(bundle))}  # is the dataset there?")
        say(f"{command_line(create)}  # if it is not")
        say(f"{command_line(version)}  # if it is")
        say(f"{command_line(_status(bundle))}  # until it is ready")
        say(command_line(push_it))
        say(f"{command_line(['kernels', 'status', kernel.id])}  # until it is complete")
        return
    before = _version_number(bundle) if _is_there(bundle) else None
    run_kaggle(create if before is None else version, "upload the dataset", shows=True)
    _wait_for_dataset(options, bundle, before or 0)
    told = run_kaggle(push_it, "push the notebook", competition=kernel.competition)
    pushed = re.search(r"Kernel version (\d+) successfully pushed", told)
    say(next((line for line in told.splitlines() if "pushed" in line), "the notebook is pushed"))
    _wait_for_kernel(options, kernel)
    number = pushed[1] if pushed else "N"
    say(f"the notebook {kernel.id} is complete; submit it with:")
    say(f"python submit.py submit --kernel {options.kernel} --version {number} --message MESSAGE")


def _check(options: PushOptions, bundle: Bundle, kernel: Kernel) -> None:
    if bundle.dataset not in kernel.datasets:
        raise UserError(
            f"the notebook in {options.kernel} reads the dataset {kernel.datasets[0]}, the bundle is "
            f"{bundle.dataset}: make it again with submit.py kernel"
        )
    if _id_of(options.bundle) != bundle.dataset:
        raise UserError(f"{options.bundle / METADATA} was changed: make the bundle again with another --id")


def _id_of(folder: Path) -> str:
    try:
        return json.loads((folder / METADATA).read_text(encoding="utf-8"))["id"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / METADATA} cannot be read: {error}") from None


def _status(bundle: Bundle) -> list[str]:
    return ["datasets", "status", bundle.dataset]


def _is_there(bundle: Bundle) -> bool:
    try:
        status = run_kaggle(_status(bundle), "look for the dataset")
    except KaggleError as error:
        if error.kind in NOT_THERE:
            return False
        raise
    return _last_word(status) != "deleted"


def _version_number(bundle: Bundle) -> int:
    """Of the dataset as it is now; 0 where the program cannot tell, as kaggle 1.7."""
    try:
        told = run_kaggle([*_status(bundle), "--format", "json"], "see the dataset's version")
        return int(json.loads(told[told.index("{") :])["current_version_number"])
    except (KaggleError, ValueError, KeyError, TypeError):
        return 0


def _last_word(text: str) -> str:
    """The status, which the program prints after its warnings."""
    return (text.strip().splitlines() or ["unknown"])[-1].strip().lower()


def _wait_for_dataset(options: PushOptions, bundle: Bundle, before: int) -> None:
    """Until the status is ready, of the new version where versions can be told apart.

    Right after an upload the status may still be that of the version before.
    """
    stale = 0

    def look() -> str:
        nonlocal stale
        status = _last_word(run_kaggle(_status(bundle), "see the dataset's status"))
        if status == "ready" and before and stale < STALE_LOOKS and _version_number(bundle) == before:
            stale += 1
            return f"still version {before}"
        return status

    status = wait_for(
        f"dataset {bundle.dataset}",
        look,
        lambda answer: answer in ("ready", "failed", "error", "deleted"),
        poll_s=options.poll_seconds,
        limit_s=options.dataset_minutes * 60,
        later=command_line(_status(bundle)),
    )
    if status != "ready":
        page = f"https://www.kaggle.com/datasets/{bundle.dataset}"
        raise UserError(f"Kaggle could not make the dataset ({status}): see {page}")
    if stale == STALE_LOOKS:
        warn(f"Kaggle still shows version {before} of the dataset: the notebook may see what it held before")


def _wait_for_kernel(options: PushOptions, kernel: Kernel) -> None:
    status_of = ["kernels", "status", kernel.id]
    said = []

    def look() -> str:
        text = run_kaggle(status_of, "see the notebook's status", competition=kernel.competition)
        said[:] = re.findall(r'Failure message: "(.*)"', text)
        return plain_status(text)

    status = wait_for(
        f"notebook {kernel.id}",
        look,
        lambda answer: answer in ("complete", "error", "cancelrequested", "cancelacknowledged"),
        poll_s=options.poll_seconds,
        limit_s=options.kernel_hours * 3600,
        later=command_line(status_of),
    )
    if status != "complete":
        why = f" ({said[0]})" if said else ""
        log = command_line(["kernels", "output", kernel.id, "-p", "kernel_log"])
        raise UserError(f"the notebook {kernel.id} ended with {status}{why}; fetch its log with: {log}")


def plain_status(text: str) -> str:
    """`complete` of `has status "complete"` and of `"KernelWorkerStatus.COMPLETE"`; else what was said."""
    match = re.search(r'has status "(?:\w+\.)?(\w+)"', text)
    return match[1].replace("_", "").lower() if match else text.strip()
