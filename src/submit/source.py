"""Source code for a bundle: the files that `infer.py` imports, copied and started once."""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from src.core.config import ROOT
from src.core.errors import UserError

SCRIPT = "infer.py"
OTHER_FILES = ("requirements.txt", "LICENSE")

# --help, because parsing options imports more modules than importing the script does.
_LIST_MODULES = """
import contextlib, importlib, io, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    importlib.import_module("infer").main(["--help"])
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def needed_files(root: Path = ROOT) -> list[Path]:
    """Return the script and every module of `src` that it imports, directly or indirectly.

    Returns:
        Paths relative to `root`, sorted.
    """
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
    """Return the full names that a Python file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def copy_source(target: Path, root: Path = ROOT) -> list[Path]:
    """Copy the files that `infer.py` needs into `target`.

    Returns:
        The copied Python files, relative to `target`.
    """
    files = needed_files(root)
    for path in [*files, *map(Path, OTHER_FILES)]:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, target / path)
        if not (target / path).stat().st_size:
            # Archives and uploads may drop empty files. Without our __init__.py, another installed package
            # named src would be imported.
            (target / path).write_text("\n", encoding="utf-8")
    return files


def find_loaded(folder: Path, files: Sequence[Path]) -> set[str]:
    """Import Python files of a copy and run `infer.py --help` there, in a separate process.

    Args:
        files: Python files, relative to `folder`.

    Returns:
        Top-level names of all loaded modules, including plugins that libraries look for.

    Raises:
        UserError: `infer.py` does not start there.
    """
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files]
    finished = subprocess.run(
        [sys.executable, "-B", "-c", _LIST_MODULES, *modules],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"infer.py does not start in the bundle: {reason}")
    return set(json.loads(finished.stdout.strip().splitlines()[-1]))


def _files(root: Path, name: str) -> list[Path]:
    """Return the files of a module and of its parent packages; none if `name` is not a module."""
    parts = name.split(".")
    places = [Path(*parts[:depth]) / "__init__.py" for depth in range(1, len(parts) + 1)]
    places.append(Path(*parts).with_suffix(".py"))
    return [path for path in places if (root / path).is_file()]
