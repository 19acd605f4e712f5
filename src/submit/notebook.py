"""The notebook that runs on Kaggle: it installs the bundle's wheels, runs `infer.py`, and checks the file."""

import json
from dataclasses import dataclass

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from src.submit.kernel_folder import FINGERPRINT


@dataclass(frozen=True)
class NotebookPlan:
    """What the notebook is told; everything else it reads from the bundle."""

    dataset: str
    """USER/SLUG of the bundle"""
    fingerprint: str
    """of the bundle, see `read_fingerprint`"""
    competition: str
    infer_arguments: tuple[str, ...]
    """of infer.py, besides `OF_THE_NOTEBOOK`"""


OF_THE_NOTEBOOK = ("--input", "--sample", "--output", "--models", "--segmenter", "--post")
"""Options of infer.py that the notebook gives by itself: only there the places are known."""


_FIND = '''\
import hashlib
import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

INPUT, WORKING = Path("/kaggle/input"), Path("/kaggle/working")


def find(name, *places):
    """The folder that holds a file of that name, at one of the places or one folder below."""
    for place in places:
        for path in [place / name, *sorted(place.glob(f"*/{name}"))]:
            if path.is_file():
                return path.parent
    raise FileNotFoundError(f"no {name} in any of {[str(place) for place in places]}: is it attached?")


def run(*command, folder=WORKING):
    """Run a program, print what it says line by line, and return its exit status."""
    command = [str(part) for part in command]
    print("$", shlex.join(command), flush=True)
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, cwd=folder, **pipe) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
    return process.returncode


# Newer notebooks mount inputs in folders by kind and owner, whose capitals may get lost.
user, slug = DATASET.split("/")
owners = [folder for folder in (INPUT / "datasets").glob("*") if folder.name.lower() == user.lower()]
bundle = find("SHA256SUMS", INPUT / slug, *(owner / slug for owner in owners))
data = find("sample_submission.csv", INPUT / COMPETITION, INPUT / "competitions" / COMPETITION)
content = json.loads((bundle / "bundle.json").read_text())
print(bundle, data, sep="\\n")'''

_VERIFY = """\
if hashlib.sha256((bundle / "SHA256SUMS").read_bytes()).hexdigest() != FINGERPRINT:
    raise RuntimeError("the dataset is not the version of the bundle that this notebook is for: push again")
if run("sha256sum", "--check", "--quiet", "SHA256SUMS", folder=bundle):
    raise RuntimeError("the dataset is not the bundle that was made: push it again")"""

_INSTALL = """\
python = f"{sys.version_info.major}.{sys.version_info.minor}"
if python not in content["wheels"]:
    raise RuntimeError(f"the bundle has no wheels for Python {python}: make it with --python {python}")
if wheels := content["wheels"][python]:
    offline = ["--no-index", "--no-deps", "--find-links", bundle / "wheels"]
    if run(sys.executable, "-m", "pip", "install", "--quiet", *offline, *wheels):
        raise RuntimeError("the wheels of the bundle cannot be installed")"""

_VERSIONS = """\
from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

importlib.invalidate_caches()
unfit = []
for name, wanted in content["needed"].items():
    try:
        found = version(name)
    except PackageNotFoundError:
        unfit.append(f"{name} is missing")
        continue
    if not SpecifierSet(wanted).contains(found, prereleases=True):
        unfit.append(f"{name} is {found}, wanted is {wanted}")
if unfit:
    print("warning: the table of Kaggle's packages that the bundle was made with is out of date:")
    print(*unfit, sep="\\n")"""

_INFER = """\
submission, sample = WORKING / "submission.csv", data / "sample_submission.csv"
submission.unlink(missing_ok=True)
command = [sys.executable, bundle / "infer.py", "--input", data, "--sample", sample, "--output", submission]
command += ["--models", *(bundle / name for name in content["models"])]
if content["segmenter"]:
    command += ["--segmenter", bundle / content["segmenter"]]
if content["post"]:
    command += ["--post", bundle / content["post"]]
status = run(*command, *ARGUMENTS)
print("infer.py ended with exit status", status)"""

_CHECK = """\
if run(sys.executable, bundle / "infer.py", "--check", submission, "--sample", sample):
    raise RuntimeError(f"infer.py (exit status {status}) left no valid submission.csv, see its output above")
interrupted = status in (143, -15)
if status and not interrupted and not os.environ.get("KAGGLE_IS_COMPETITION_RERUN"):
    raise RuntimeError(f"infer.py failed (exit status {status}), see its output above")
if status:
    print(f"infer.py ended early (exit status {status}); the file that it left is complete and valid")"""


def build_notebook(plan: NotebookPlan) -> NotebookNode:
    """The notebook, without outputs; the same plan gives the same notebook."""
    told = "\n".join(
        [
            f"DATASET = {json.dumps(plan.dataset)}",
            f"FINGERPRINT = {json.dumps(plan.fingerprint)}  # of its SHA256SUMS",
            f"COMPETITION = {json.dumps(plan.competition)}",
            f"ARGUMENTS = {json.dumps(list(plan.infer_arguments))}  # of infer.py",
        ]
    )
    cells = [
        new_markdown_cell(
            "# Abdominal trauma: predict the test patients\n\n"
            "Written by `submit.py kernel`. Everything comes from the attached dataset, the bundle that "
            "`submit.py bundle` made: source, fold models and wheels. No internet is needed."
        ),
        new_code_cell(told),
        new_markdown_cell("## The bundle and the competition's data"),
        new_code_cell(_FIND),
        new_markdown_cell(
            "It must be the version of the bundle that this notebook was made for, and every file as it was "
            "then."
        ),
        new_code_cell(_VERIFY),
        new_markdown_cell(
            "## Packages that Kaggle lacks\n\n"
            "Requirements are not looked at: torch, numpy and pandas stay as they are."
        ),
        new_code_cell(_INSTALL),
        new_markdown_cell("What is there now, against what `infer.py` runs with:"),
        new_code_cell(_VERSIONS),
        new_markdown_cell("## Predict"),
        new_code_cell(_INFER),
        new_markdown_cell(
            "A file that an interrupted `infer.py` left is complete: patients that it did not come to have "
            "the prior. It counts if it passes the check. A mistake or a crash is to be mended and stops the "
            "notebook here, but not where the hidden test images are predicted: there any valid file counts."
        ),
        new_code_cell(_CHECK),
    ]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # nbformat draws them at random
    notebook = new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python"}
    notebook.metadata[FINGERPRINT] = plan.fingerprint
    nbformat.validate(notebook)
    return notebook
