"""The source in a bundle: what infer.py imports, and nothing besides."""

from src.core.config import ROOT
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
