# ruff: noqa: E402
# The cells of the notebook that `submit.py kernel` writes, in the percent format of editors and jupytext.

# %% [markdown]
# # Abdominal trauma: predict the test patients
#
# Written by `submit.py kernel`. Everything comes from the attached dataset, the bundle that
# `submit.py bundle` made: source, fold models and wheels. No internet is needed.

# %%
DATASET = "filled in by submit.py kernel"
FINGERPRINT = "SHA-256 of its SHA256SUMS"
COMPETITION = "whose test images are predicted"
ARGUMENTS = ["of infer.py"]

# %% [markdown]
# ## The bundle and the competition's data

# %%
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
    """The folder that holds a file of that name: one of the places, or one folder below."""
    for place in places:
        for path in [place / name, *sorted(place.glob(f"*/{name}"))]:
            if path.is_file():
                return path.parent
    raise FileNotFoundError(f"no {name} in any of {[str(place) for place in places]}: is it attached?")


def run(*command, folder=WORKING):
    """Run a program, print its output line by line, and return its exit status."""
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
print(bundle, data, sep="\n")

# %% [markdown]
# It must be the bundle that this notebook was made for, with no file changed.

# %%
if hashlib.sha256((bundle / "SHA256SUMS").read_bytes()).hexdigest() != FINGERPRINT:
    raise RuntimeError("the dataset is not the version of the bundle that this notebook is for: push again")
if run("sha256sum", "--check", "--quiet", "SHA256SUMS", folder=bundle):
    raise RuntimeError("the dataset is not the bundle that was made: push it again")

# %% [markdown]
# ## Packages that Kaggle lacks
#
# They are installed without their requirements: torch, numpy and pandas stay as they are.

# %%
python = f"{sys.version_info.major}.{sys.version_info.minor}"
if python not in content["wheels"]:
    raise RuntimeError(f"the bundle has no wheels for Python {python}: make it with --python {python}")
if wheels := content["wheels"][python]:
    offline = ["--no-index", "--no-deps", "--find-links", bundle / "wheels"]
    if run(sys.executable, "-m", "pip", "install", "--quiet", *offline, *wheels):
        raise RuntimeError("the wheels of the bundle cannot be installed")

# %% [markdown]
# Installed versions, compared with those that `infer.py` runs with:

# %%
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
    print(*unfit, sep="\n")

# %% [markdown]
# ## Predict

# %%
submission, sample = WORKING / "submission.csv", data / "sample_submission.csv"
submission.unlink(missing_ok=True)
command = [sys.executable, bundle / "infer.py", "--input", data, "--sample", sample, "--output", submission]
command += ["--models", *(bundle / name for name in content["models"])]
if content["segmenter"]:
    command += ["--segmenter", bundle / content["segmenter"]]
if content["post"]:
    command += ["--post", bundle / content["post"]]
status = run(*command, *ARGUMENTS)
print("infer.py ended with exit status", status)

# %% [markdown]
# A file that an interrupted `infer.py` left is complete: patients that it did not reach have the prior. It
# counts if it passes the check. After an error the notebook stops here, except on the hidden test images,
# where any valid file counts.

# %%
if run(sys.executable, bundle / "infer.py", "--check", submission, "--sample", sample):
    raise RuntimeError(f"infer.py (exit status {status}) left no valid submission.csv, see its output above")
interrupted = status in (143, -15)
if status and not interrupted and not os.environ.get("KAGGLE_IS_COMPETITION_RERUN"):
    raise RuntimeError(f"infer.py failed (exit status {status}), see its output above")
if status:
    print(f"infer.py ended early (exit status {status}); the file that it left is complete and valid")
