"""The folder that `kaggle kernels push` takes: a notebook and its metadata."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import nbformat

from src.core.errors import UserError
from src.core.files import atomic_path, require_writable, write_json
from src.submit.bundle import Bundle, read_bundle
from src.submit.notebook import NotebookPlan, build_notebook
from src.submit.options import KernelOptions

NOTEBOOK, METADATA = "predict.ipynb", "kernel-metadata.json"
OF_THE_NOTEBOOK = {
    *("--input", "--models", "--sample", "--output", "--post", "--segmenter"),
    *("--max-hours", "--check", "--config"),
}
"""Options of infer.py that are not to be given again in `--infer`."""
T4 = "NvidiaTeslaT4"
"""The image's torch no longer runs on Kaggle's other free GPU, the P100: Kaggle/kaggle-cli issue 1151."""


@dataclass(frozen=True)
class Kernel:
    """What the metadata of a kernel's folder tell."""

    id: str
    competition: str
    datasets: tuple[str, ...]


def write_kernel(options: KernelOptions) -> None:
    """Write the notebook and its metadata.

    Raises:
        UserError: no bundle, arguments that its infer.py does not have, or an output that cannot be written.
    """
    bundle = read_bundle(options.bundle)
    folder = options.output
    if folder.is_dir() and any(folder.iterdir()) and not (folder / METADATA).is_file():
        raise UserError(f"{folder} holds something else than a notebook for Kaggle: name another --output")
    require_writable(folder / METADATA)
    arguments = ["--max-hours", f"{options.max_hours:g}", *_further(options.infer, bundle)]
    plan = NotebookPlan(bundle.dataset, options.competition, tuple(arguments))
    with atomic_path(folder / NOTEBOOK) as temporary:
        nbformat.write(build_notebook(plan), temporary)
    write_json(_metadata(options, bundle), folder / METADATA)


def read_kernel(folder: Path) -> Kernel:
    """Read the metadata of a kernel's folder.

    Raises:
        UserError: they are not there, or are not those of `submit.py kernel`.
    """
    try:
        told = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        return Kernel(told["id"], told["competition_sources"][0], tuple(told["dataset_sources"]))
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise UserError(f"{folder} holds no {METADATA} of submit.py kernel") from None


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


def _further(text: str, bundle: Bundle) -> list[str]:
    """Arguments of `--infer`, checked here rather than hours later on Kaggle."""
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--infer is not a command line ({error}): {text}") from None
    flags = {part.split("=")[0] for part in arguments if part.startswith("--")}
    if again := sorted(flags & OF_THE_NOTEBOOK):
        raise UserError(f"--infer must not hold {again[0]}: the notebook gives it")
    if unknown := sorted((flags | {"--max-hours", "--check"}) - set(bundle.infer_options)):
        raise UserError(f"the infer.py of the bundle has no option {unknown[0]}")
    if bundle.segmenter and "--segmenter" not in bundle.infer_options:
        raise UserError("the infer.py of the bundle takes no segmenter: make the bundle without one")
    return arguments
