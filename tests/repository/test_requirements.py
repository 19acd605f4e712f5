"""What the code imports is required, and what is required is pinned."""

import ast
import os
import re
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
OWN = {"src", *(path.stem for folder in (".", "tests", "benchmarks") for path in ROOT.glob(f"{folder}/*.py"))}


def names(file: str) -> set[str]:
    """Distribution names of a requirements file, in their normal form."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = (re.match(r"[A-Za-z0-9._-]+", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match}


def imported() -> set[str]:
    """Top-level packages that the kit and its tests import."""
    packages = set()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("src/**/*.py"), *ROOT.glob("tests/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                packages |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                packages.add(node.module.split(".")[0])
    return packages - set(sys.stdlib_module_names) - OWN


@pytest.mark.parametrize("package", sorted(imported()))
def test_an_imported_package_is_required(package):
    distributions = {re.sub(r"[-_.]+", "-", name).lower() for name in packages_distributions()[package]}
    assert distributions & names("requirements.txt"), f"{package} comes from {distributions}"


def test_every_requirement_is_pinned():
    assert names("requirements.txt") <= names("constraints.txt")


@pytest.mark.skipif(os.environ.get("KIT_VERSIONS") != "lowest", reason="make test-lowest runs it")
@pytest.mark.parametrize("name", sorted(names("requirements.txt")))
def test_the_lowest_version_is_what_is_tested(name):
    """A bound below what can be installed together with the rest promises what nobody has tried."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    (bound,) = re.findall(rf"^{name}[>=]=([\w.]+)", text, re.MULTILINE | re.IGNORECASE)
    installed = Version(version(name))
    assert installed.release[: len(Version(bound).release)] == Version(bound).release
