"""The source in a bundle: what infer.py imports and nothing else, and whether it starts there."""

from pathlib import Path

import pytest

from src.core.config import ROOT
from src.core.errors import UserError
from src.submit.source import copy_source, find_loaded, needed_files
from tests.helpers.folders import files_of


def test_needed_files_follows_imports_inside_functions(tmp_path):
    (tmp_path / "src" / "late").mkdir(parents=True)
    (tmp_path / "src" / "late" / "part.py").write_text("import json\n")
    (tmp_path / "src" / "other.py").write_text("")
    (tmp_path / "infer.py").write_text("def main():\n    from src.late.part import json\n")
    assert [str(path) for path in needed_files(tmp_path)] == ["infer.py", "src/late/part.py"]


def test_needed_files_leaves_out_training_and_submission():
    parts = {path.parts[1] for path in needed_files() if path.parts[0] == "src" and len(path.parts) > 2}
    assert {"core", "data", "cls", "infer"} <= parts
    assert not parts & {"voco", "report", "submit"}
    names = {path.name for path in needed_files()}
    assert "phantom" not in str(needed_files()) and "fold.py" not in names


def test_copy_source_leaves_no_file_empty(tmp_path):
    """Kaggle drops empty files."""
    copy_source(tmp_path)
    copied = files_of(tmp_path)
    assert all(copied.values()) and "src/__init__.py" in copied
    for name in ("infer.py", "requirements.txt", "LICENSE"):
        assert copied[name] == (ROOT / name).read_bytes()


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


def test_find_loaded_includes_what_only_the_help_loads(tmp_path):
    write_source(tmp_path, "import filecmp\n")
    (tmp_path / "other.py").write_text("import chunk_of_words\n")
    (tmp_path / "chunk_of_words.py").write_text("")
    assert {"infer", "colorsys", "src", "filecmp"} <= find_loaded(tmp_path, [Path("infer.py")])
    assert "chunk_of_words" not in find_loaded(tmp_path, [Path("infer.py")])
    assert "chunk_of_words" in find_loaded(tmp_path, [Path("infer.py"), Path("other.py")])


def test_find_loaded_reports_a_failed_import_in_one_line(tmp_path):
    write_source(tmp_path, "import json\n")
    (tmp_path / "other.py").write_text("raise ValueError('first line\\nthe reason')\n")
    with pytest.raises(UserError, match="does not start in the bundle: the reason") as caught:
        find_loaded(tmp_path, [Path("infer.py"), Path("other.py")])
    assert "\n" not in str(caught.value)


def test_find_loaded_leaves_nothing_in_the_folder(tmp_path):
    write_source(tmp_path, "import json\n")
    before = files_of(tmp_path)
    find_loaded(tmp_path, [Path("infer.py")])
    assert files_of(tmp_path) == before
