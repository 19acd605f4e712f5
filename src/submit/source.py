"""Which files of the kit `infer.py` needs: found by following its imports."""

import ast
import shutil
from collections.abc import Sequence
from pathlib import Path

from src.core.config import ROOT

SCRIPT = "infer.py"
BESIDE = ("requirements.txt", "LICENSE")


def needed_files(root: Path = ROOT) -> list[Path]:
    """The script and every module of `src` that it imports, at whatever depth, relative to `root`, sorted."""
    found: set[Path] = set()
    todo = [Path(SCRIPT)]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            names = imported_names(root / path)
            todo += [file for name in names if name.split(".")[0] == "src" for file in _files(root, name)]
    return sorted(found)


def imported_names(path: Path) -> set[str]:
    """Full names that a file imports; those inside functions too, which run later or never."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def module_names(files: Sequence[Path]) -> list[str]:
    """How the files are imported; the scripts among them included."""
    dotted = (".".join(path.with_suffix("").parts) for path in files)
    return [name.removesuffix(".__init__") for name in dotted]


def copy_source(target: Path, root: Path = ROOT) -> list[Path]:
    """Copy what `infer.py` needs into `target`; the copied Python files, relative, are returned."""
    files = needed_files(root)
    for path in [*files, *map(Path, BESIDE)]:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, target / path)
        if not (target / path).stat().st_size:
            # An empty file may get lost on its way through archives and uploads; without its __init__.py,
            # any other package named src would be imported instead of ours.
            (target / path).write_text("\n", encoding="utf-8")
    return files


def _files(root: Path, name: str) -> list[Path]:
    """The module of that name with the packages around it; nothing where a name is not a module's."""
    parts = name.split(".")
    places = [Path(*parts[:depth]) / "__init__.py" for depth in range(1, len(parts) + 1)]
    places.append(Path(*parts).with_suffix(".py"))
    return [path for path in places if (root / path).is_file()]
