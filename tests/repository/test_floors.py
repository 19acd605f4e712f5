"""The rules about imports, checked by reading the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))

FLOORS = {
    "core": 0,
    "ct": 1,
    "score": 1,
    "data": 2,
    "prepare": 3,
    "phantom": 3,
    "nn": 3,
    "voco": 4,
    "seg": 4,
    "cls": 4,
    "probe": 5,
    "infer": 5,
    "report": 5,
    "submit": 6,  # bundles infer.py and checks what it would say
}
WITHOUT_TORCH = (
    "src.core.config",
    "src.core.log",
    "src.core.files",
    "src.core.targets",
    "src.core.isolation",
    "src.cls.views",  # goes to processes that decode
    "src.ct",
    "src.data",
    "src.prepare",
    "src.phantom",
    "src.score",
    *(f"src.submit.{name}" for name in ("folders", "options", "packages", "source")),
    *(f"src.submit.{name}" for name in ("kaggle_program", "push", "competition")),
)
ONE_IMPORT_SITE = {"albumentations": 1, "accelerate": 1, "dicomsdl": 1, "monai": 2, "nibabel": 1}
TORCH_PACKAGES = {"torch", "torchvision", "timm", "accelerate", "segmentation_models_pytorch", "monai"}


def modules() -> Iterator[tuple[str, set[str]]]:
    """Every module of src with the full names that it imports, at whatever depth."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} imports relatively"
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        yield name, imported


MODULES = dict(modules())


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_floor_imports_lower_floors_only(name):
    parts = name.split(".")
    if len(parts) < 3:
        return
    for imported in MODULES[name]:
        if imported.startswith("src."):
            other = imported.split(".")[1]
            assert other == parts[1] or FLOORS[other] < FLOORS[parts[1]], f"{name} imports {imported}"
        assert imported.split(".")[0] not in SCRIPTS, f"{name} imports the script {imported}"


@pytest.mark.parametrize("library", sorted(ONE_IMPORT_SITE))
def test_a_library_with_quirks_has_one_import_site(library):
    sites = [
        name for name, imported in MODULES.items() if library in {item.split(".")[0] for item in imported}
    ]
    assert len(sites) == ONE_IMPORT_SITE[library], sites


def test_what_is_to_start_quickly_imports_no_torch():
    """Neither by name, at whatever depth, nor through other modules."""
    quick = [name for name in MODULES if name.startswith(WITHOUT_TORCH)]
    for name in quick:
        assert not {imported.split(".")[0] for imported in MODULES[name]} & TORCH_PACKAGES, name
    modules = [name.removesuffix(".__init__") for name in quick if not name.endswith("__main__")]
    code = f"import sys, score, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_short(script):
    assert len((ROOT / f"{script}.py").read_text(encoding="utf-8").splitlines()) <= 150


PARALLEL = {"__init__", "__main__", "options", "dataset", "model", "losses", "order", "run"}
"""File names that several rooms share, since they hold the same part of each stage."""


def test_no_two_rooms_have_a_file_of_one_name():
    rooms = {}
    for name in MODULES:
        *_, room, module = name.split(".")
        if module not in PARALLEL:
            rooms.setdefault(module, []).append(room)
    assert {module: found for module, found in rooms.items() if len(found) > 1} == {}


def test_no_two_rooms_have_a_public_class_of_one_name():
    rooms = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                rooms.setdefault(node.name, []).append(path.parent.name)
    assert {name: found for name, found in rooms.items() if len(set(found)) > 1} == {}
