"""Packages in a bundle: those that `infer.py` needs and Kaggle's notebooks lack, as wheels."""

import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from src.core.errors import UserError
from src.core.log import warn
from src.submit.source import SCRIPT

KagglePackages = Mapping[str, Version | None]
"""Packages of Kaggle's notebooks: canonical name -> version, None if unknown."""

NEVER_BUNDLED = frozenset({"torch", "torchvision", "triton", "numpy", "pandas", "scipy"})
"""Packages that are never bundled: Kaggle's own versions match its driver and each other."""

OLDEST_GLIBC, NEWEST_GLIBC = 5, 35
"""Minor versions (2.x) of the `manylinux` tags that Kaggle accepts: it runs Ubuntu 22.04 with glibc 2.35."""


@dataclass(frozen=True)
class Package:
    """A package to bundle, in the version installed here."""

    name: str
    version: str
    reason: str = ""

    @property
    def pinned(self) -> str:
        return f"{self.name}=={self.version}"


def read_kaggle_packages(path: Path) -> KagglePackages:
    """Read a table in the format of `pip freeze`; a bare name has an unknown version.

    Raises:
        UserError: the file is missing, or a line cannot be parsed.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    found: dict[str, Version | None] = {}
    for number, line in enumerate(lines, 1):
        text = line.split(" #")[0].strip()
        if not text or text.startswith(("#", "-")):
            continue
        match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)\s*(?:==\s*(\S+)|@\s*\S.*)?", text)
        try:
            if not match:
                raise InvalidVersion
            found[canonicalize_name(match[1])] = Version(match[2]) if match[2] else None
        except InvalidVersion:
            raise UserError(f"{path}, line {number}: expected `name==version`, got {text!r}") from None
    return found


def read_ranges(path: Path) -> dict[str, Requirement]:
    """Read the lines of a requirements file, by canonical name."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    found = [Requirement(line) for line in lines if line]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def needed_distributions(
    imported: Iterable[str], loaded: Iterable[str], ranges: Mapping[str, Requirement]
) -> set[str]:
    """Return the required packages that are imported, or that a start of `infer.py` loads.

    Loaded ones are plugins such as decoders, which libraries discover. Other loaded modules belong to the
    libraries themselves, see `choose_packages`.

    Args:
        imported, loaded: top-level names of modules.

    Returns:
        Canonical names.
    """
    owners = packages_distributions()
    names = {canonicalize_name(name) for module in {*imported, *loaded} for name in owners.get(module, ())}
    # If two distributions provide one module (opencv), use the one in the requirements.
    return names & set(ranges)


def choose_packages(
    needed: Iterable[str], kaggle: KagglePackages, ranges: Mapping[str, Requirement], python: str
) -> list[Package]:
    """Choose the packages to bundle for a version of Python, sorted by name.

    A needed package is bundled unless Kaggle has a version in range. The same holds for the requirements of
    bundled packages; requirements of Kaggle's own packages are assumed to be met.

    Raises:
        UserError: Kaggle lacks one of `NEVER_BUNDLED`, or a needed package is not installed here.
    """
    chosen: dict[str, Package] = {}
    todo = [(ranges.get(name, Requirement(name)), SCRIPT) for name in sorted(needed)]
    while todo:
        requirement, asker = todo.pop(0)
        name = canonicalize_name(requirement.name)
        if name in chosen or _is_met(requirement, kaggle):
            continue
        there = f"Kaggle has {kaggle.get(name) or 'an unknown version'}"
        if name in NEVER_BUNDLED:
            if name not in kaggle:
                raise UserError(
                    f"the table of Kaggle's packages has no {name}, which is never bundled: add it"
                )
            warn(f"Python {python}: {asker} requires {requirement}, {there}, which is kept")
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError:
            raise UserError(
                f"{asker} needs {name}, which is not installed here: python -m pip install {name}"
            ) from None
        reason = f"for {asker}" + (f", {there}" if name in kaggle else "")
        chosen[name] = Package(found.metadata["Name"], found.version, reason)
        todo += [(each, found.metadata["Name"]) for each in _requirements(found.requires, python)]
    return sorted(chosen.values(), key=lambda package: package.name.lower())


def download_wheels(packages: Sequence[Package], python: str, folder: Path) -> None:
    """Download a wheel of each package for Linux x86-64, without its requirements.

    Raises:
        UserError: a wheel does not exist, or the package registry cannot be reached.
    """
    if not packages:
        return
    newest_first = [f"manylinux_2_{minor}_x86_64" for minor in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)]
    platforms = [*newest_first, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python),
        *(part for platform in platforms for part in ("--platform", platform)),
        *("--dest", str(folder)),
        *(package.pinned for package in packages),
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("ERROR: ")
        raise UserError(
            f"pip could not download wheels for Python {python}: {reason} (is there a network? else install "
            f"a version that has a wheel for Linux x86-64, or leave {python} out of --python)"
        )


def _is_met(requirement: Requirement, kaggle: KagglePackages) -> bool:
    name = canonicalize_name(requirement.name)
    if name not in kaggle:
        return False
    version = kaggle[name]
    if version is None:
        return not requirement.specifier
    return requirement.specifier.contains(version, prereleases=True)


def _requirements(lines: list[str] | None, python: str) -> list[Requirement]:
    """Parse the requirements that apply on Kaggle (Linux x86-64), without extras."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "extra": "",
    }
    found = map(Requirement, lines or [])
    return [each for each in found if each.marker is None or each.marker.evaluate(environment)]
