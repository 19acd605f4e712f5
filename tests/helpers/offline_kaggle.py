"""A machine like Kaggle's, out of this one: its paths, its packages, and no network. Linux only."""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NoReturn

import pytest
from packaging.utils import canonicalize_name

# What the real root holds is seen under a new one, which alone has /kaggle; all of it ends with the command.
_INSIDE = """
set -e
root=$1; bundle=$2; bundle_at=$3; data=$4; data_at=$5; working=$6
shift 6
mount -t tmpfs tmpfs "$root"
for entry in /*; do
    if [ "$entry" = /kaggle ]; then continue
    elif [ -L "$entry" ]; then cp -P "$entry" "$root$entry"
    elif [ -d "$entry" ]; then mkdir "$root$entry"; mount --rbind "$entry" "$root$entry"
    fi
done
mkdir -p "$root$bundle_at" "$root$data_at" "$root/kaggle/working" "$root/jupyter"
mount --bind "$bundle" "$root$bundle_at"
mount -o remount,bind,ro "$root$bundle_at"
mount --bind "$data" "$root$data_at"
mount -o remount,bind,ro "$root$data_at"
mount --bind "$working" "$root/kaggle/working"
cd "$root"
exec chroot . "$@"
"""

EXECUTE = """
import importlib, json, socket, subprocess, sys
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

notebook_path, result_path, *modules = sys.argv[1:]
result = {"importable": [], "interfaces": [name for _, name in socket.if_nameindex()], "error": ""}
for module in modules:
    try:
        importlib.import_module(module)
        result["importable"].append(module)
    except ImportError:
        pass
notebook = nbformat.read(notebook_path, as_version=4)
# Sockets of the kernel as files: even the way to oneself is down here.
manager = AsyncKernelManager(kernel_name="python3", transport="ipc", ip="/jupyter/socket")
try:
    NotebookClient(notebook, km=manager, timeout=None).execute(cwd="/kaggle/working")
except CellExecutionError as error:
    result["error"] = str(error)
outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
result["text"] = "".join(output.get("text", "") for output in outputs)
with open(result_path, "w") as file:
    json.dump(result, file)
"""


def leave_out(reason: str) -> NoReturn:
    """Skip what this machine cannot do; where `make offline` asks for it, that is a failure."""
    if os.environ.get("KIT_SKIPS") == "fail":
        pytest.fail(reason)
    pytest.skip(reason)


def upload(bundle: Path, dataset: Path) -> Path:
    """What arrives at Kaggle: all but the metadata, see `KaggleServer.unpacked`."""
    return shutil.copytree(bundle, dataset, ignore=shutil.ignore_patterns("dataset-metadata.json"))


def why_not() -> str:
    """Why namespaces cannot be made here; empty where they can."""
    if not sys.platform.startswith("linux") or not shutil.which("unshare"):
        return "no unshare program: Linux alone has namespaces"
    tried = subprocess.run(
        [*_unshare(), "sh", "-c", "mount -t tmpfs tmpfs /mnt"], capture_output=True, text=True, check=False
    )
    return f"namespaces are not permitted here: {tried.stderr.strip()}" if tried.returncode else ""


def _unshare() -> list[str]:
    return ["unshare", "--net", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]


def run_as_on_kaggle(
    command: list[str], root: Path, bundle: tuple[Path, str], data: tuple[Path, str], working: Path
) -> subprocess.CompletedProcess:
    """Run a command where `bundle` and `data` lie at given paths, read-only, and nothing can be reached."""
    root.mkdir()
    mounts = [str(part) for part in (root, *bundle, *data, working)]
    # Settings of pip and of Python here must not help there.
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(working.parent),
        "LANG": "C.UTF-8",
        "JUPYTER_RUNTIME_DIR": "/jupyter",
        "PIP_CONFIG_FILE": os.devnull,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }
    return subprocess.run(
        [*_unshare(), "sh", "-c", _INSIDE, "sh", *mounts, *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def make_environment(folder: Path, without: Iterable[str]) -> Path:
    """A virtual environment with the packages of this one, linked, less some; its Python is returned.

    pip is linked too, and installs into the new environment alone: what it writes are new entries.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    target = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    left_out = {canonicalize_name(name) for name in without}
    kept, dropped = set(), {"__pycache__"}
    sources = set()
    for found in distributions():
        entries = _entries(found)
        sources.add(Path(str(found.locate_file(""))).resolve())
        (dropped if canonicalize_name(found.metadata["Name"]) in left_out else kept).update(entries)
    # A folder of two distributions would be written to through its link.
    assert not kept & dropped - {"__pycache__"}, kept & dropped
    for source in sources:
        for entry in source.iterdir():
            if entry.name not in dropped and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry)
    return python


def _entries(found: Distribution) -> set[str]:
    """Names in site-packages that belong to a distribution."""
    return {path.parts[0] for path in found.files or () if path.parts[0] not in ("..", "__pycache__")}
