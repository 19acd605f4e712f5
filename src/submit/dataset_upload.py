"""Upload a bundle as a dataset, the first time or again, and wait until Kaggle has unpacked it."""

import json

from src.core.errors import UserError
from src.submit.bundle_folder import Bundle
from src.submit.failures import FINAL, NOT_THERE, KaggleError
from src.submit.kaggle_program import command_line, run_kaggle
from src.submit.options import PushOptions
from src.submit.waiting import LOOK_LIMIT_S, Doubt, wait_for

# Kaggle's uploader leaves folders out unless told to pack them; the server unpacks zip archives again.
_FOLDERS_AS_ZIP = ("--dir-mode", "zip")
_SETTLED = ("ready", "failed", "deleted")


def create_command(options: PushOptions) -> list[str]:
    """Arguments of the kaggle program for the first upload."""
    return ["datasets", "create", "-p", str(options.bundle), *_FOLDERS_AS_ZIP]


def version_command(options: PushOptions) -> list[str]:
    """Arguments of the kaggle program for every later upload."""
    return ["datasets", "version", "-p", str(options.bundle), "-m", options.message.strip(), *_FOLDERS_AS_ZIP]


def status_command(bundle: Bundle) -> list[str]:
    """Arguments of the kaggle program that ask whether the dataset is ready."""
    return ["datasets", "status", bundle.dataset]


def upload_dataset(options: PushOptions, bundle: Bundle, afterwards: str) -> None:
    """Create the dataset or a version of it, and wait until it is ready.

    Args:
        afterwards: command that goes on from there, for who does not want to wait.

    Raises:
        UserError: Kaggle could not make it, or not in the time of `--dataset-minutes`.
        KaggleError: the kaggle program failed.
    """
    before = _wait_for_older(options, bundle) if _is_there(bundle) else None
    command = create_command(options) if before is None else version_command(options)
    run_kaggle(command, "upload the dataset", shows=True)
    doubt = Doubt(() if before is None else ("failed",))

    def look() -> str:
        status = _read_status(bundle)
        if doubt.covers(status):
            return f"{status}, perhaps before the upload"
        if status == "ready" and before is not None:
            # A version is ready while the next is being made: only their numbers tell them apart.
            number = _read_version(bundle)
            if number is None or number <= before:
                return f"at version {number or 'unknown'}"
        return status

    status = wait_for(
        f"dataset {bundle.dataset}",
        look,
        lambda answer: answer in _SETTLED,
        poll_s=options.poll_seconds,
        limit_s=options.dataset_minutes * 60,
        later=f"{command_line(status_command(bundle))}; when the new version is ready: {afterwards}",
    )
    if status != "ready":
        page = f"https://www.kaggle.com/datasets/{bundle.dataset}"
        raise UserError(f"Kaggle could not make the dataset ({status}): see {page}")


def _is_there(bundle: Bundle) -> bool:
    try:
        return _read_status(bundle) != "deleted"
    except KaggleError as error:
        if error.kind in NOT_THERE:
            return False
        raise


def _wait_for_older(options: PushOptions, bundle: Bundle) -> int:
    """Number of the version that is there, which has to be settled before the next; 0 where it is none."""
    number = 0

    def look() -> str:
        nonlocal number
        status = _read_status(bundle)
        if status == "ready":
            found = _read_version(bundle)
            if found is None:
                return "at version unknown"
            number = found
        return status

    wait_for(
        f"dataset {bundle.dataset}, before the upload",
        look,
        lambda answer: answer in _SETTLED,
        poll_s=options.poll_seconds,
        limit_s=options.dataset_minutes * 60,
        later=f"{command_line(status_command(bundle))}; then push again",
    )
    return number


def _read_status(bundle: Bundle) -> str:
    """Printed after warnings of the program."""
    told = run_kaggle(status_command(bundle), "see the dataset's status", limit_s=LOOK_LIMIT_S)
    return (told.strip().splitlines() or ["unknown"])[-1].strip().lower()


def _read_version(bundle: Bundle) -> int | None:
    """Number of the newest version; None where it cannot be told now."""
    command = [*status_command(bundle), "--format", "json"]
    try:
        told = run_kaggle(command, "see the dataset's version", limit_s=LOOK_LIMIT_S)
        return int(json.loads(told[told.index("{") :])["current_version_number"])
    except KaggleError as error:
        if error.kind in FINAL:
            raise
        return None
    except (ValueError, KeyError, TypeError):
        return None
