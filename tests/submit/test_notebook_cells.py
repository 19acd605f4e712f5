"""The cells of the notebook, run one after the other on a bundle made by hand, with a script for infer.py."""

import sys
from pathlib import Path

import pytest

from src.submit.folders import verify_bundle, write_checksums
from src.submit.notebook import build_notebook
from tests.helpers.kaggle_folders import COMPETITION, DATASET, write_bundle

SLUG = DATASET.split("/")[1]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

# Stands for the real script: it leaves the file and the exit status that its last arguments name.
_INFER = """
import sys
from pathlib import Path
if "--check" in sys.argv:
    sys.exit(Path(sys.argv[sys.argv.index("--check") + 1]).read_text() != "valid")
print("arguments:", *sys.argv[1:])
print("a warning", file=sys.stderr)
content, status = sys.argv[-2:]
if content != "nothing":
    Path(sys.argv[sys.argv.index("--output") + 1]).write_text(content)
sys.exit(int(status))
"""


class Machine:
    """Folders as on Kaggle, below one of their own, and a bundle at one of its places."""

    def __init__(
        self, root: Path, bundle_at: str = SLUG, data_at: str = COMPETITION, **content: object
    ) -> None:
        self.root = root
        self.working = root / "working"
        self.working.mkdir(parents=True)
        self.data = root / "input" / data_at
        self.data.mkdir(parents=True)
        (self.data / "sample_submission.csv").write_text("patient_id\n")
        self.bundle = root / "input" / bundle_at
        self.bundle.parent.mkdir(parents=True, exist_ok=True)
        write_bundle(self.bundle, **{"wheels": {PYTHON: []}} | content)
        (self.bundle / "dataset-metadata.json").unlink()  # is not uploaded
        (self.bundle / "SHA256SUMS").unlink()
        (self.bundle / "infer.py").write_text(_INFER)
        write_checksums(self.bundle)
        self.fingerprint = verify_bundle(self.bundle)

    def run(self, *arguments: str, dataset: str = DATASET) -> None:
        names: dict = {}
        for cell in build_notebook(dataset, self.fingerprint, COMPETITION, arguments).cells:
            if cell.cell_type == "code":
                exec(cell.source.replace('"/kaggle/', f'"{self.root}/'), names)


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    monkeypatch.delenv("KAGGLE_IS_COMPETITION_RERUN", raising=False)
    return Machine(tmp_path / "kaggle")


def test_cells_give_infer_py_data_models_and_post_processing(machine, capfd):
    machine.run("--max-hours", "8.5", "valid", "0")
    shown = capfd.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith("arguments: ")]
    assert line.removeprefix("arguments: ").split() == [
        *("--input", str(machine.data), "--sample", f"{machine.data}/sample_submission.csv"),
        *("--output", f"{machine.working}/submission.csv"),
        *("--models", f"{machine.bundle}/models/0_run", f"{machine.bundle}/models/1_other"),
        *("--post", f"{machine.bundle}/post.json", "--max-hours", "8.5", "valid", "0"),
    ]
    assert "a warning\n" in shown  # what goes to stderr is in the notebook's log too
    assert "out of date" not in shown


def test_cells_give_infer_py_the_segmenter(tmp_path, capfd):
    machine = Machine(tmp_path / "kaggle", segmenter="segmenter", post=None)
    machine.run("valid", "0")
    shown = capfd.readouterr().out
    assert f"/models/1_other --segmenter {machine.bundle}/segmenter valid 0\n" in shown


@pytest.mark.parametrize(
    ("bundle_at", "data_at", "dataset"),
    [
        (f"datasets/{DATASET}", f"competitions/{COMPETITION}", DATASET),
        (f"{SLUG}/bundle", COMPETITION, DATASET),
        (f"datasets/{DATASET}", COMPETITION, DATASET.replace("someone", "SomeOne")),  # mounts are lower case
    ],
)
def test_cells_find_other_mounts(tmp_path, bundle_at, data_at, dataset):
    machine = Machine(tmp_path / "kaggle", bundle_at, data_at)
    machine.run("valid", "0", dataset=dataset)
    assert (machine.working / "submission.csv").read_text() == "valid"


def test_cells_name_a_missing_dataset(tmp_path):
    machine = Machine(tmp_path / "kaggle", "other-dataset")
    with pytest.raises(FileNotFoundError, match=r"no SHA256SUMS in any of .*is it attached"):
        machine.run("valid", "0")


@pytest.mark.parametrize("status", ["143", "0"])
def test_cells_accept_a_valid_file_of_an_interrupted_run(machine, status):
    machine.run("valid", status)
    assert (machine.working / "submission.csv").read_text() == "valid"


def test_cells_stop_after_an_error_but_not_on_the_hidden_images(machine, monkeypatch, capfd):
    with pytest.raises(RuntimeError, match=r"infer.py failed .exit status 2."):
        machine.run("valid", "2")
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    machine.run("valid", "2")
    assert "ended early (exit status 2)" in capfd.readouterr().out


@pytest.mark.parametrize(("content", "status"), [("broken", "0"), ("nothing", "1"), ("broken", "143")])
def test_cells_fail_without_a_valid_file(machine, monkeypatch, content, status):
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    (machine.working / "submission.csv").write_text("valid")  # of an earlier run: it must not count
    with pytest.raises(RuntimeError, match=f"exit status {status}. left no valid submission.csv"):
        machine.run(content, status)


def test_cells_stop_at_a_changed_file_before_anything_runs(machine):
    (machine.bundle / "infer.py").write_text("print('changed')")
    with pytest.raises(RuntimeError, match="not the bundle that was made"):
        machine.run("valid", "0")
    assert not (machine.working / "submission.csv").exists()


def test_cells_stop_at_another_version_of_the_bundle(machine):
    (machine.bundle / "infer.py").write_text(_INFER + "# another version\n")
    (machine.bundle / "SHA256SUMS").unlink()
    write_checksums(machine.bundle)
    with pytest.raises(RuntimeError, match="not the version of the bundle that this notebook is for"):
        machine.run("valid", "0")
    assert not (machine.working / "submission.csv").exists()


def test_cells_name_a_python_without_wheels(tmp_path):
    machine = Machine(tmp_path / "kaggle", wheels={"3.1": []})
    with pytest.raises(RuntimeError, match=f"make it with --python {PYTHON}"):
        machine.run("valid", "0")


def test_cells_warn_of_packages_missing_or_out_of_range_and_go_on(tmp_path, capfd):
    needed = {"packaging": ">=999", "nowhere-package": ">=1", "pytest": ">=1", "pip": ""}
    machine = Machine(tmp_path / "kaggle", needed=needed)
    machine.run("valid", "0")
    shown = capfd.readouterr().out
    _, warning = shown.split(
        "warning: the table of Kaggle's packages that the bundle was made with is out of date:\n"
    )
    first, second = warning.splitlines()[:2]
    assert first.startswith("packaging is ") and first.endswith(", wanted is >=999")
    assert second == "nowhere-package is missing"
    assert "pytest is" not in warning and "pip is" not in warning
    assert (machine.working / "submission.csv").read_text() == "valid"
