"""Upload a bundle as a dataset, push the notebook, and wait for both."""

import json
import re
import shlex
from contextlib import suppress

from src.core.errors import UserError
from src.core.log import say
from src.submit.folders import Kernel, read_bundle, read_kernel, verify_bundle
from src.submit.kaggle_program import POLL_LIMIT_S, KaggleError, command_line, run_kaggle, wait_for
from src.submit.options import PushOptions

FAILED = ("failed", "deleted")
"""States of a dataset that will not become ready."""

ENDED = ("complete", "error", "cancelrequested", "cancelacknowledged")
"""States of a notebook that no longer runs."""


def push(options: PushOptions) -> None:
    """Create the dataset or a version of it, push the notebook, wait for each, and print how to submit.

    Raises:
        UserError: inconsistent folders, a dataset that does not become ready in time, or a
            notebook that failed.
        KaggleError: the kaggle program failed.
    """
    bundle, kernel = read_bundle(options.bundle), read_kernel(options.kernel)
    if bundle.dataset != kernel.dataset:
        raise UserError(
            f"the notebook in {options.kernel} reads the dataset {kernel.dataset}, the bundle is "
            f"{bundle.dataset}: make it again with submit.py kernel"
        )
    if verify_bundle(options.bundle) != kernel.fingerprint:
        raise UserError(
            f"the notebook in {options.kernel} was made for another state of the bundle in {options.bundle}: "
            "make it again with submit.py kernel"
        )
    # Without --dir-mode the program skips folders; Kaggle unpacks the archives to the same folders.
    upload = ["-p", str(options.bundle), "--dir-mode", "zip"]
    create = ["datasets", "create", *upload]
    add_version = ["datasets", "version", "-m", options.message.strip(), *upload]
    push_notebook = ["kernels", "push", "-p", str(options.kernel)]
    if options.dry_run:
        dataset_status, kernel_status = _dataset_status(bundle.dataset), _kernel_status(kernel.id)
        for command, remark in (
            (dataset_status, "does the dataset exist?"),
            (create, "if not"),
            (add_version, "if it does, once it is ready"),
            (dataset_status, "until it is ready"),
            (kernel_status, "state of the version before"),
            (push_notebook, "upload the notebook and run it"),
            (kernel_status, "until it is complete"),
        ):
            say(f"{command_line(command)}  # {remark}")
        return
    _upload_dataset(options, bundle.dataset, create, add_version, command_line(push_notebook))
    version = _run_notebook(options, kernel, push_notebook)
    say(f"the notebook {kernel.id} is complete; submit it with:")
    submit = ["submit", "--kernel", str(options.kernel), "--version", version, "--message", "MESSAGE"]
    say(shlex.join(["python", "submit.py", *submit]))


def _dataset_status(dataset: str) -> list[str]:
    return ["datasets", "status", dataset]


def _kernel_status(kernel: str) -> list[str]:
    return ["kernels", "status", kernel]


def _upload_dataset(
    options: PushOptions, dataset: str, create: list[str], add_version: list[str], push_notebook: str
) -> None:
    """Create the dataset, or add a version once the previous one is settled, and wait until it is ready."""
    waits = {"poll_s": options.poll_seconds, "limit_s": options.dataset_minutes * 60}
    status = command_line(_dataset_status(dataset))

    def poll() -> str:
        return _read_dataset_state(dataset)

    try:
        before = poll()
    except KaggleError as error:
        if not error.means_absent:
            raise
        before = None
    if before is not None and not _is_settled(before):
        later = f"{status}; then push again"
        before = wait_for(f"dataset {dataset}, before the upload", poll, _is_settled, later=later, **waits)
    run_kaggle(create if before is None else add_version, "upload the dataset", show=True)
    state = wait_for(
        f"dataset {dataset}",
        poll,
        # A version is ready while the next one is unpacked: only the number differs.
        lambda state: state in FAILED or (_is_settled(state) and state != before),
        later=f"{status}; when the new version is ready: {push_notebook}",
        before=before if before in FAILED else None,
        **waits,
    )
    if state in FAILED:
        page = f"https://www.kaggle.com/datasets/{dataset}"
        raise UserError(f"Kaggle could not make the dataset ({state}): see {page}")


def _read_dataset_state(dataset: str) -> str:
    """Return the dataset's state; `ready, version 4` with the number of the newest ready version."""
    action = "see the dataset's status"
    text = run_kaggle(_dataset_status(dataset), action, limit_s=POLL_LIMIT_S)
    status = (text.strip().splitlines() or ["unknown"])[-1].strip().lower()
    if status != "ready":
        return status
    text = run_kaggle([*_dataset_status(dataset), "--format", "json"], action, limit_s=POLL_LIMIT_S)
    try:
        return f"ready, version {int(json.loads(text[text.index('{') :])['current_version_number'])}"
    except (ValueError, KeyError, TypeError):
        raise KaggleError(action, f"no version number in {' '.join(text.split())!r}") from None


def _is_settled(state: str) -> bool:
    return state in FAILED or state.startswith("ready")


def _run_notebook(options: PushOptions, kernel: Kernel, push_notebook: list[str]) -> str:
    """Push the notebook and wait until it has finished.

    Returns:
        Number of its version, `N` if the kaggle program did not print it.
    """
    before = None
    with suppress(KaggleError):  # there is none yet, or the push will report the problem
        before = _read_notebook_state(kernel.id)
    text = run_kaggle(push_notebook, "push the notebook", show=True)
    state = wait_for(
        f"notebook {kernel.id}",
        lambda: _read_notebook_state(kernel.id),
        lambda state: state.split(" ")[0] in ENDED,
        poll_s=options.poll_seconds,
        limit_s=options.kernel_hours * 3600,
        later=command_line(_kernel_status(kernel.id)),
        before=before,
    )
    if state != "complete":
        logs = command_line(["kernels", "logs", kernel.id])
        raise UserError(f"the notebook {kernel.id} ended with {state}; see its log with: {logs}")
    pushed = re.search(r"Kernel version (\d+) successfully pushed", text)
    return pushed[1] if pushed else "N"


def _read_notebook_state(kernel: str) -> str:
    """Return `running` for `has status "KernelWorkerStatus.RUNNING"`, with the failure message if any."""
    text = run_kaggle(_kernel_status(kernel), "see the notebook's status", limit_s=POLL_LIMIT_S)
    status = re.search(r'has status "(?:\w+\.)?(\w+)"', text)
    message = re.search(r'Failure message: "(.*)"', text)
    state = status[1].replace("_", "").lower() if status else " ".join(text.split())
    return f"{state} ({message[1]})" if message else state
