"""Write the notebook that installs a bundle on Kaggle and runs `infer.py`."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from src.core.config import ROOT, parse_options
from src.core.errors import UserError
from src.core.files import atomic_path, require_writable, write_json
from src.core.log import warn
from src.infer.options import InferOptions
from src.score.postprocess import post_of_runs
from src.submit.folders import FINGERPRINT, KERNEL_METADATA, NOTEBOOK, Bundle, read_bundle, verify_bundle
from src.submit.options import KernelOptions

TEMPLATE = ROOT / "configs" / "kaggle" / "predict.py"
"""Cells, each after a line `# %%` or `# %% [markdown]`; the first code cell is replaced."""

T4 = "NvidiaTeslaT4"
"""Kaggle's torch no longer supports its other free GPU, the P100: Kaggle/kaggle-cli issue 1151."""

GIVEN = ("--input", "--sample", "--output", "--models", "--segmenter", "--post", "--max-hours")
"""Options of infer.py that the notebook sets."""


def write_kernel(options: KernelOptions) -> None:
    """Write the folder for `kaggle kernels push`: the notebook and its metadata.

    Raises:
        UserError: no bundle or a changed one, arguments that infer.py refuses, or an output that cannot be
            written.
    """
    bundle = read_bundle(options.bundle)
    fingerprint = verify_bundle(options.bundle)
    folder = options.output
    if folder.is_dir() and any(folder.iterdir()) and not (folder / KERNEL_METADATA).is_file():
        raise UserError(f"{folder} contains something other than a notebook: name another --output")
    arguments = ["--max-hours", f"{options.max_hours:g}", *_split(options.infer)]
    _check_arguments(options.bundle, bundle, arguments)
    require_writable(folder / KERNEL_METADATA)
    with atomic_path(folder / NOTEBOOK) as temporary:
        notebook = build_notebook(bundle.dataset, fingerprint, options.competition, arguments)
        nbformat.write(notebook, temporary)
    write_json(_metadata(options, bundle.dataset), folder / KERNEL_METADATA)
    if not options.gpu:
        warn(
            f"on a CPU alone {options.max_hours:g} hours may be too short for all test patients: those that "
            "infer.py does not reach get the prior"
        )


def build_notebook(
    dataset: str, fingerprint: str, competition: str, infer_arguments: Sequence[str]
) -> NotebookNode:
    """Build the notebook, without outputs; equal arguments give equal notebooks.

    Args:
        dataset: USER/SLUG of the bundle.
        fingerprint: fingerprint of the bundle, see `verify_bundle`.
        infer_arguments: arguments of infer.py besides the paths that the notebook finds.
    """
    constants = "\n".join(
        [
            f"DATASET = {json.dumps(dataset)}",
            f"FINGERPRINT = {json.dumps(fingerprint)}  # of its SHA256SUMS",
            f"COMPETITION = {json.dumps(competition)}",
            f"ARGUMENTS = {json.dumps(list(infer_arguments))}  # of infer.py",
        ]
    )
    cells = []
    for part in TEMPLATE.read_text(encoding="utf-8").split("\n# %%")[1:]:
        kind, _, text = part.rstrip().partition("\n")
        if kind == " [markdown]":
            cells.append(new_markdown_cell(re.sub(r"^# ?", "", text, flags=re.MULTILINE)))
        else:
            cells.append(new_code_cell(constants if text.startswith("DATASET = ") else text))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # nbformat's own ids are random
    notebook = new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python"}
    notebook.metadata[FINGERPRINT] = fingerprint
    nbformat.validate(notebook)
    return notebook


def _metadata(options: KernelOptions, dataset: str) -> dict:
    """Return the metadata; fields as documented by the kaggle program for kernel-metadata.json."""
    content = {
        "id": options.id,
        # Kaggle derives the address from the title: only this title gives the slug.
        "title": options.id.split("/")[1].replace("-", " ").title(),
        "code_file": NOTEBOOK,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": options.gpu,
        "enable_tpu": False,
        "enable_internet": False,
        "dataset_sources": [dataset],
        "competition_sources": [options.competition],
        "kernel_sources": [],
        "model_sources": [],
    }
    return content | ({"machine_shape": T4} if options.gpu else {})


def _split(text: str) -> list[str]:
    """Split the arguments in `--infer`; refuse those that the notebook sets."""
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--infer is not a command line ({error}): {text}") from None
    flags = {part.split("=")[0] for part in arguments}
    if refused := sorted(flags & {*GIVEN, "--check", "--config", "--help", "-h"}):
        raise UserError(
            f"--infer must not contain {refused[0]}: it takes further options of a prediction, and the "
            f"notebook gives {' '.join(GIVEN)}"
        )
    return arguments


def _check_arguments(folder: Path, bundle: Bundle, arguments: Sequence[str]) -> None:
    """Parse the command line of infer.py here, with the bundle's paths, not hours later on Kaggle."""
    given = ["--input", "data", "--sample", "sample_submission.csv", "--output", "submission.csv"]
    given += ["--models", *(str(folder / name) for name in bundle.models)]
    for option, name in (("--segmenter", bundle.segmenter), ("--post", bundle.post)):
        given += [option, str(folder / name)] if name else []
    try:
        options = parse_options(InferOptions, [*given, *arguments], prog="infer.py", description="")
        post_of_runs(options.models, options.weights, options.post)
    except UserError as error:
        raise UserError(f"infer.py would refuse its options: {error}") from None
