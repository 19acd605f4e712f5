"""Upload a bundle and a notebook, and wait until the notebook has run."""

import shlex

from src.core.errors import UserError
from src.core.log import say
from src.submit import dataset_upload, notebook_run
from src.submit.bundle_folder import (
    METADATA,
    Bundle,
    read_bundle,
    read_dataset_id,
    read_fingerprint,
    require_unchanged,
)
from src.submit.kaggle_program import command_line
from src.submit.kernel_folder import Kernel, read_kernel
from src.submit.options import PushOptions


def push(options: PushOptions) -> None:
    """Create the dataset or a version of it, push the notebook, wait for each, and say what came out.

    Raises:
        UserError: folders that do not belong together, a dataset that Kaggle does not make ready in time, or
            a notebook that failed.
        KaggleError: the kaggle program failed.
    """
    bundle, kernel = read_bundle(options.bundle), read_kernel(options.kernel)
    _check(options, bundle, kernel)
    if options.dry_run:
        _show_commands(options, bundle, kernel)
        return
    push_notebook = command_line(notebook_run.push_command(options))
    dataset_upload.upload_dataset(options, bundle, afterwards=push_notebook)
    version = notebook_run.run_notebook(options, kernel)
    say(f"the notebook {kernel.id} is complete; submit it with:")
    submit = ["submit", "--kernel", str(options.kernel), "--version", version, "--message", "MESSAGE"]
    say(shlex.join(["python", "submit.py", *submit]))


def _check(options: PushOptions, bundle: Bundle, kernel: Kernel) -> None:
    if bundle.dataset not in kernel.datasets:
        raise UserError(
            f"the notebook in {options.kernel} reads the dataset {kernel.datasets[0]}, the bundle is "
            f"{bundle.dataset}: make it again with submit.py kernel"
        )
    if read_dataset_id(options.bundle) != bundle.dataset:
        raise UserError(f"{options.bundle / METADATA} was changed: make the bundle again with another --id")
    if read_fingerprint(options.bundle) != kernel.bundle_fingerprint:
        raise UserError(
            f"the notebook in {options.kernel} was made for another state of the bundle in {options.bundle}: "
            "make it again with submit.py kernel"
        )
    require_unchanged(options.bundle)


def _show_commands(options: PushOptions, bundle: Bundle, kernel: Kernel) -> None:
    dataset_status, kernel_status = dataset_upload.status_command(bundle), notebook_run.status_command(kernel)
    for command, remark in (
        (dataset_status, "is the dataset there?"),
        (dataset_upload.create_command(options), "if it is not"),
        (dataset_upload.version_command(options), "if it is, when it is ready"),
        (dataset_status, "until it is ready"),
        (kernel_status, "how did the version before end?"),
        (notebook_run.push_command(options), "upload the notebook and run it"),
        (kernel_status, "until it is complete"),
    ):
        say(f"{command_line(command)}  # {remark}")
