"""Which packages a bundle has to bring: what `infer.py` needs, less what Kaggle's notebooks have."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from src.core.errors import UserError

KagglePackages = Mapping[str, Version | None]
"""What Kaggle's notebooks have: canonical name -> version, None where it is not known."""

NEVER_BUNDLED = frozenset({"torch", "torchvision", "triton", "numpy", "pandas", "scipy"})
"""Kaggle's own fit its driver and each other."""


@dataclass(frozen=True)
class Package:
    """A package that a bundle brings, in the version installed here."""

    name: str
    version: str
    reason: str

    @property
    def pinned(self) -> str:
        """As pip takes it."""
        return f"{self.name}=={self.version}"


def read_kaggle_packages(path: Path) -> KagglePackages:
    """Read what Kaggle has, in the form of `pip freeze`; a bare name is of unknown version.

    Raises:
        UserError: the file is missing, or a line of it is not understood.
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
    """The lines of a requirements file, by canonical name."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    found = [Requirement(line) for line in lines if line]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def needed_distributions(
    imported: Iterable[str], loaded: Iterable[str], ranges: Mapping[str, Requirement]
) -> set[str]:
    """Canonical names of what the kit imports by name, and of requirements that a start loaded.

    The second are plugins, such as decoders, which a library finds by itself. What else was loaded belongs
    to the libraries, and is looked after with their requirements.
    """
    own = packages_distributions()
    by_name = {canonicalize_name(name) for module in imported for name in own.get(module, ())}
    in_memory = {canonicalize_name(name) for module in loaded for name in own.get(module, ())}
    # Two distributions may own one module (opencv): the required one is meant.
    return {name for name in by_name if name in ranges} | (in_memory & set(ranges))


def choose_packages(
    needed: Iterable[str], kaggle: KagglePackages, ranges: Mapping[str, Requirement], python: str
) -> tuple[list[Package], list[str]]:
    """What to bundle for a version of Python, sorted, and what the user ought to know.

    A needed package is bundled unless Kaggle has a version in range; so are, in turn, the requirements of
    what is bundled. What Kaggle has is taken to bring its own requirements.

    Raises:
        UserError: Kaggle lacks one of `NEVER_BUNDLED`, or a package that is needed is not installed here.
    """
    chosen: dict[str, Package] = {}
    remarks = []
    todo = [(ranges.get(name, Requirement(name)), "infer.py") for name in sorted(needed)]
    seen = set()
    while todo:
        requirement, asker = todo.pop(0)
        name = canonicalize_name(requirement.name)
        if name in chosen or (name, asker) in seen or _is_met(requirement, kaggle):
            continue
        seen.add((name, asker))
        if name in NEVER_BUNDLED:
            if name not in kaggle:
                raise UserError(
                    f"the table of Kaggle's packages has no {name}, which is never bundled: add it"
                )
            remarks.append(
                f"{asker} asks for {requirement}, Kaggle has {_version(kaggle[name])}, which stays"
            )
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError:
            raise UserError(
                f"{asker} needs {name}, which is not installed here: python -m pip install {name}"
            ) from None
        reason = f"for {asker}"
        if name in kaggle:
            reason += f", Kaggle has {_version(kaggle[name])}"
        chosen[name] = Package(found.metadata["Name"], found.version, reason)
        todo += [(each, found.metadata["Name"]) for each in _requirements(found.requires, python)]
    return sorted(chosen.values(), key=lambda package: package.name.lower()), remarks


def _is_met(requirement: Requirement, kaggle: KagglePackages) -> bool:
    name = canonicalize_name(requirement.name)
    if name not in kaggle:
        return False
    version = kaggle[name]
    if version is None:
        return not requirement.specifier
    return requirement.specifier.contains(version, prereleases=True)


def _version(known: Version | None) -> str:
    return str(known) if known else "an unknown version"


def _requirements(lines: list[str] | None, python: str) -> list[Requirement]:
    """Those that hold on Kaggle (Linux x86-64), without extras."""
    place = {
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
    found = []
    for line in lines or []:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue  # metadata of old packages; what is missing then shows when the notebook starts
        if requirement.marker is None or requirement.marker.evaluate(place):
            found.append(requirement)
    return found
