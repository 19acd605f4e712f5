"""Write the folder that `kaggle kernels push` takes: a notebook and its metadata."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import nbformat

from src.core.config import parse_options
from src.core.errors import UserError
from src.core.files import atomic_path, require_writable, write_json
from src.core.log import warn
from src.infer.options import InferOptions, choose_post
from src.submit.bundle_folder import Bundle, read_bundle, read_fingerprint, require_unchanged
from src.submit.kernel_folder import METADATA, NOTEBOOK
from src.submit.notebook import OF_THE_NOTEBOOK, NotebookPlan, build_notebook
from src.submit.options import KernelOptions

T4 = "NvidiaTeslaT4"
"""Kaggle's torch no longer runs on its other free GPU, the P100: Kaggle/kaggle-cli issue 1151."""


def write_kernel(options: KernelOptions) -> None:
    """Write the notebook and its metadata.

    Raises:
        UserError: no bundle, one that was changed, arguments that infer.py refuses, or an output that cannot
            be written.
    """
    bundle = read_bundle(options.bundle)
    require_unchanged(options.bundle)
    folder = options.output
    if folder.is_dir() and any(folder.iterdir()) and not (folder / METADATA).is_file():
        raise UserError(f"{folder} holds something else than a notebook for Kaggle: name another --output")
    further = _split(options.infer)
    arguments = ["--max-hours", f"{options.max_hours:g}", *further]
    _check_arguments([*_as_on_kaggle(options.bundle, bundle), *arguments])
    require_writable(folder / METADATA)
    plan = NotebookPlan(
        bundle.dataset, read_fingerprint(options.bundle), options.competition, tuple(arguments)
    )
    with atomic_path(folder / NOTEBOOK) as temporary:
        nbformat.write(build_notebook(plan), temporary)
    write_json(_metadata(options, bundle), folder / METADATA)
    if not options.gpu:
        warn(
            f"on a CPU alone {options.max_hours:g} hours may be too short for all test patients: those that "
            "infer.py does not come to get the prior"
        )


def _metadata(options: KernelOptions, bundle: Bundle) -> dict:
    """Fields: the kaggle program's documentation of kernel-metadata.json."""
    content = {
        "id": options.id,
        # Kaggle derives the address from the title: only this one leads back to the slug.
        "title": options.id.split("/")[1].replace("-", " ").title(),
        "code_file": NOTEBOOK,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": options.gpu,
        "enable_tpu": False,
        "enable_internet": False,
        "dataset_sources": [bundle.dataset],
        "competition_sources": [options.competition],
        "kernel_sources": [],
        "model_sources": [],
    }
    return content | ({"machine_shape": T4} if options.gpu else {})


def _split(text: str) -> list[str]:
    """The arguments in `--infer`, without those that are not the user's to give."""
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--infer is not a command line ({error}): {text}") from None
    flags = {part.split("=")[0] for part in arguments}
    if again := sorted(flags & {*OF_THE_NOTEBOOK, "--max-hours"}):
        raise UserError(f"--infer must not hold {again[0]}: the notebook gives it")
    if other := sorted(flags & {"--check", "--config", "--help", "-h"}):
        raise UserError(f"--infer must not hold {other[0]}: it takes options of a prediction")
    return arguments


def _as_on_kaggle(folder: Path, bundle: Bundle) -> list[str]:
    """What the notebook gives to infer.py by itself, with the bundle as it lies here."""
    given = ["--input", "data", "--sample", "sample_submission.csv", "--output", "submission.csv"]
    given += ["--models", *(str(folder / name) for name in bundle.models)]
    for option, name in (("--segmenter", bundle.segmenter), ("--post", bundle.post)):
        given += [option, str(folder / name)] if name else []
    return given


def _check_arguments(arguments: Sequence[str]) -> None:
    """Let infer.py's own checks look at its command line: here rather than hours later on Kaggle."""
    try:
        choose_post(parse_options(InferOptions, list(arguments), prog="infer.py", description=""))
    except UserError as error:
        raise UserError(f"infer.py would refuse its options: {error}") from None
