"""The source in a bundle: what infer.py imports, and nothing besides; and whether it starts there."""

import pytest

from src.core.config import ROOT
from src.core.errors import UserError
from src.submit.loaded_modules import find_loaded
from src.submit.source import copy_source, imported_names, module_names, needed_files


def test_every_import_of_the_kit_is_followed():
    files = needed_files()
    names = set(module_names(files))
    for path in files:
        for name in imported_names(ROOT / path):
            if (ROOT / (name.replace(".", "/") + ".py")).is_file() and name.startswith("src."):
                assert name in names, f"{path} imports {name}"


def test_an_import_inside_a_function_counts(tmp_path):
    (tmp_path / "src" / "late").mkdir(parents=True)
    (tmp_path / "src" / "late" / "part.py").write_text("import json\n")
    (tmp_path / "src" / "other.py").write_text("")
    (tmp_path / "infer.py").write_text("def main():\n    from src.late.part import json\n")
    assert [str(path) for path in needed_files(tmp_path)] == ["infer.py", "src/late/part.py"]


def test_training_tests_and_the_submission_itself_stay_at_home():
    parts = {path.parts[1] for path in needed_files() if path.parts[0] == "src" and len(path.parts) > 2}
    assert {"core", "data", "cls", "infer"} <= parts
    assert not parts & {"voco", "report", "submit"}
    names = {path.name for path in needed_files()}
    assert "phantom" not in str(needed_files()) and "fold.py" not in names


def test_no_file_of_the_copy_is_empty(tmp_path):
    copy_source(tmp_path)
    sizes = {path.name: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    assert min(sizes.values()) > 0
    assert {"infer.py", "requirements.txt", "LICENSE", "__init__.py"} <= set(sizes)
    assert (tmp_path / "src" / "__init__.py").is_file()


_INFER = """
import colorsys
def main(argv):
    assert argv == ["--help"]
    print("help")
    from src.late import part
    raise SystemExit(0)
"""


def write_source(folder, part: str) -> None:
    (folder / "src" / "late").mkdir(parents=True)
    (folder / "src" / "late" / "part.py").write_text(part)
    (folder / "infer.py").write_text(_INFER)


def test_a_start_shows_what_is_loaded_at_once_and_what_only_the_help_loads(tmp_path):
    write_source(tmp_path, "import sndhdr_not_here\n")
    with pytest.raises(UserError, match="does not start in the bundle: ModuleNotFoundError: No module"):
        find_loaded(tmp_path, ["infer"])
    (tmp_path / "src" / "late" / "part.py").write_text("import filecmp\n")
    (tmp_path / "other.py").write_text("import chunk_of_words\n")
    (tmp_path / "chunk_of_words.py").write_text("")
    assert {"infer", "colorsys", "src", "filecmp"} <= find_loaded(tmp_path, ["infer"])
    assert "chunk_of_words" not in find_loaded(tmp_path, ["infer"])
    assert "chunk_of_words" in find_loaded(tmp_path, ["infer", "other"])


def test_a_module_that_cannot_be_imported_is_told_in_one_line(tmp_path):
    write_source(tmp_path, "import json\n")
    (tmp_path / "other.py").write_text("raise ValueError('first line\\nthe reason')\n")
    with pytest.raises(UserError, match="does not start in the bundle: the reason") as caught:
        find_loaded(tmp_path, ["infer", "other"])
    assert "\n" not in str(caught.value)


def test_starting_leaves_nothing_in_the_folder(tmp_path):
    write_source(tmp_path, "import json\n")
    before = {path for path in tmp_path.rglob("*")}
    find_loaded(tmp_path, ["infer"])
    assert {path for path in tmp_path.rglob("*")} == before
