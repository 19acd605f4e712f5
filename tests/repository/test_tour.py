"""The tour of the README can be followed: its files exist, and lead outside of it in few places."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOUR = re.findall(r"^\| `(src/[\w/]+\.py)` \|", README, re.MULTILINE)
MAX_LINES = 6600

BESIDE = {
    "prepare": {"sources", "retries", "grey_stack", "spacing"},
    "ct": {
        *("geometry", "storage", "series_guards", "acquisitions", "mixed_scans", "slice_order"),
        *("codestream", "multiframe", "pydicom_reader", "nifti", "label_volume", "label_ids"),
        *("plausibility", "sampled_slices", "trunk", "dicom_readings"),
    },
    "data": {"labels", "selection", "png", "packed", "preview", "doubtful"},
    "voco": {"appearance", "index", "extents", "planes", "order", "monitors", "comparisons"},
    "nn": {
        *("encoder", "encoder3d", "first_weights", "weights_file", "sequence", "organ_decoder"),
        *("augmentation", "encoder_input", "loading", "schedule", "execution", "micro_batch", "tracking"),
    },
    "cls": {
        *("inputs", "order", "organs", "slice_targets", "stack_mixing", "fold_models"),
        *("second_model", "second_features", "validation", "run_claims"),
    },
    "seg": {"model"},
    "score": {
        *("prior", "submission", "missing_targets", "bootstrap", "classes", "postprocess", "postfit"),
    },
    "infer": {"organ_finder", "budget", "predictor", "read_ahead", "side_by_side"},
}
"""What files of the tour import besides each other, `src/core` and the options of their rooms."""


def imported_files(name: str) -> set[tuple[str, str]]:
    """Room and module of every import from src."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("src."):
            parts = node.module.split(".")
            names = [parts[2]] if len(parts) > 2 else [alias.name for alias in node.names]
            found |= {(parts[1], each) for each in names}
    return found


def test_tour_visits_files_that_exist_each_once():
    assert len(TOUR) > 20 and len(set(TOUR)) == len(TOUR)
    assert [name for name in TOUR if not (ROOT / name).is_file()] == []


def test_tour_can_be_read_in_an_afternoon():
    lines = sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in TOUR)
    assert lines <= MAX_LINES


@pytest.mark.parametrize("name", TOUR)
def test_file_of_the_tour_imports_few_files_outside_of_it(name):
    outside = {
        (room, module)
        for room, module in imported_files(name)
        if f"src/{room}/{module}.py" not in TOUR and room != "core" and module != "options"
    }
    unlisted = {(room, module) for room, module in outside if module not in BESIDE.get(room, ())}
    assert not unlisted


def test_no_entry_beside_the_tour_is_unused():
    imported = set().union(*(imported_files(name) for name in TOUR))
    unused = {
        (room, module)
        for room, modules in BESIDE.items()
        for module in modules
        if (room, module) not in imported
    }
    assert not unused


WALKS = re.findall(
    r"\| `(src/[\w/]+\.py)` \| `([\w.]+)` \|", (ROOT / "docs/walks.md").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(("name", "function"), WALKS)
def test_function_of_a_walk_is_in_its_file(name, function):
    *classes, last = function.split(".")
    body = ast.parse((ROOT / name).read_text(encoding="utf-8")).body
    for each in (*classes, last):
        named = [node for node in body if getattr(node, "name", None) == each]
        assert named, f"{name} has no {function}"
        body = getattr(named[0], "body", [])
