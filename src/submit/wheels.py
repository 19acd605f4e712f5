"""Wheels for Kaggle's Python, which need not be the one that runs here."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from src.core.errors import UserError
from src.submit.packages import Package

OLDEST_GLIBC, NEWEST_GLIBC = 5, 35
"""2.x of the `manylinux` tags that Kaggle takes: its notebooks run on Ubuntu 22.04, whose glibc is 2.35."""


def download_wheels(packages: Sequence[Package], python: str, folder: Path) -> None:
    """Fetch a wheel of each package, in the version installed here, for Linux x86-64.

    Raises:
        UserError: there is no such wheel, the registry cannot be reached, or there is no pip.
    """
    if not packages:
        return
    finished = subprocess.run(
        download_command(packages, python, folder), capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise UserError(_explain(finished.stderr, python))


def download_command(packages: Sequence[Package], python: str, folder: Path) -> list[str]:
    """The arguments of pip. Nothing is built, and no requirement comes along."""
    newest_first = [f"manylinux_2_{minor}_x86_64" for minor in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)]
    platforms = [*newest_first, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    return [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python),
        *(part for platform in platforms for part in ("--platform", platform)),
        *("--dest", str(folder)),
        *(package.pinned for package in packages),
    ]


def _explain(text: str, python: str) -> str:
    if re.search(r"No module named pip\b", text):
        return "this environment has no pip to fetch wheels with: python -m ensurepip, or uv pip install pip"
    cut_off = re.search(r"NewConnectionError|Failed to establish|Name or service|timed out|Max retries", text)
    missing = re.search(r"No matching distribution found for (\S+)", text)
    if missing and not cut_off:
        # An unreachable registry may show in nothing else.
        doubt = ", in whatever version; is there a network?" if "from versions: none" in text else ":"
        return (
            f"there is no wheel of {missing[1]} for Python {python} on Linux x86-64{doubt} install a version "
            f"that has one, or leave {python} out of --python"
        )
    errors = [line.removeprefix("ERROR: ") for line in text.splitlines() if line.startswith("ERROR: ")]
    what = "is there a network? " if cut_off else ""
    return f"pip could not download the wheels: {what}{(errors or text.strip().splitlines() or [''])[0]}"
