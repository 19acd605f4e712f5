"""push: with the real kaggle program against a server that answers as Kaggle does, and what it refuses."""

import io
import json
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

import submit
from src.core.errors import UserError
from tests.helpers.folders import files_of
from tests.helpers.kaggle_folders import COMPETITION, DATASET, KERNEL, write_bundle
from tests.helpers.kaggle_server import fails, has, only_error, printed_states


@pytest.fixture
def folders(tmp_path) -> SimpleNamespace:
    """A bundle with a folder in a folder and a wheel, and its notebook."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a.py", "")
    files = {
        "infer.py": b"print()\n",
        "src/core/part.py": b"\n",
        "models/0_run/fold0/model.safetensors": b"weights",
        "wheels/a-1-py3-none-any.whl": wheel.getvalue(),
    }
    bundle, kernel = write_bundle(tmp_path / "bundle", files), tmp_path / "my kernel"
    submit.main(["kernel", "--bundle", str(bundle), "--id", KERNEL, "--output", str(kernel)])
    return SimpleNamespace(bundle=bundle, kernel=kernel)


@pytest.fixture
def push(machine, folders) -> Callable[..., int]:
    given = ["push", "--bundle", folders.bundle, "--kernel", folders.kernel, "--poll-seconds", 0.01]
    return lambda *more: machine.submit(*given, *more)


def uploaded(bundle: Path) -> dict[str, bytes]:
    """What is to arrive at Kaggle: the program does not upload the metadata."""
    return {name: data for name, data in files_of(bundle).items() if name != "dataset-metadata.json"}


def test_push_creates_the_dataset_runs_the_notebook_and_prints_its_version(machine, push, folders, capsys):
    assert push() == 0
    assert machine.server.unpacked(DATASET) == uploaded(folders.bundle)
    (pushed,) = machine.server.notebooks[KERNEL]
    assert pushed["datasetDataSources"] == [DATASET] and pushed["competitionDataSources"] == [COMPETITION]
    assert pushed["isPrivate"] and pushed["enableGpu"] and not pushed["enableInternet"]
    assert pushed["machineShape"] == "NvidiaTeslaT4"
    made = nbformat.read(folders.kernel / "predict.ipynb", as_version=4)
    arrived = json.loads(pushed["text"])
    assert [cell["source"] for cell in arrived["cells"]] == [cell.source for cell in made.cells]
    printed = capsys.readouterr()
    assert printed_states(printed.out, f"dataset {DATASET}") == ["blobs_received", "ready, version 1"]
    assert printed_states(printed.out, f"notebook {KERNEL}") == ["queued", "running", "complete"]
    command = shlex.split(printed.out.splitlines()[-1])
    assert command[2:7] == ["submit", "--kernel", str(folders.kernel), "--version", "1"]
    assert "Upload successful: models.zip" in printed.err  # progress is passed on


def test_push_adds_a_version_and_waits_for_it_and_for_the_new_run(machine, push, folders, capsys):
    machine.server.add_dataset(DATASET)
    machine.server.add_notebook(KERNEL, "COMPLETE")
    assert push("--message", " six folds ") == 0
    (version,) = [body for name, body in machine.server.requests if name == "CreateDatasetVersion"]
    assert version["body"]["versionNotes"] == "six folds"
    assert machine.server.unpacked(DATASET) == uploaded(folders.bundle)
    printed = capsys.readouterr().out
    assert printed_states(printed, f"dataset {DATASET}") == ["ready, version 1", "ready, version 2"]
    states = printed_states(printed, f"notebook {KERNEL}")
    assert states == ["complete, as before", "queued", "running", "complete"]
    assert "--version 2 " in printed.splitlines()[-1]


@pytest.mark.slow
def test_push_waits_until_a_dataset_is_unpacked_before_it_adds_a_version(machine, push, capsys):
    machine.server.add_dataset(DATASET)
    machine.server.unpacking = ["BLOBS_RECEIVED", "BLOBS_DECOMPRESSED", "READY"]
    assert push() == 0
    printed = capsys.readouterr().out
    assert printed_states(printed, f"dataset {DATASET}, before the upload")[-1] == "ready, version 1"
    assert "--version 1 " in printed.splitlines()[-1]


def forget_login(machine, monkeypatch) -> None:
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")


TITLE = 'The requested title "A bundle" is already in use by a dataset. Please choose another title.'
QUOTA = "Maximum weekly GPU quota of 30.00 hours reached."
RULES = "You must accept this competition's rules before you'll be able to use its data"
SOURCES = {"versionNumber": 1, "url": "x", "invalidDatasetSources": [DATASET]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "part", "not_requested"),
    [
        (forget_login, "kaggle auth login", "GetDatasetStatus"),
        (lambda machine, patch: patch.setenv("KAGGLE_KEY", "wrong"), "kaggle auth login", "StartBlobUpload"),
        (lambda machine, _: machine.close_server(), "is there a network", "StartBlobUpload"),
        (fails("GetDatasetStatus", 503, "Service Unavailable"), "Service Unavailable$", "CreateDataset"),
        (fails("CreateDataset", 200, TITLE), "already in use .*another --title and --id", "SaveKernel"),
        (fails("upload", 400, "", 1), "Upload unsuccessful: .*push again", "SaveKernel"),
        (has(unpacking=["BLOBS_RECEIVED", "FAILED"]), r"could not make the dataset \(failed\)", "SaveKernel"),
        (fails("SaveKernel", 200, QUOTA), "weekly GPU quota of 30.00 hours reached.*--gpu false", None),
        (fails("SaveKernel", 403, RULES), "tab Rules", None),
        (has(answers={"SaveKernel": [(200, SOURCES)]}), f"not valid dataset sources.*'{DATASET}'", None),
        (
            has(running=["RUNNING", "ERROR"], failure_message="Your notebook ran out of memory"),
            rf"with error \(Your notebook ran out of memory\); .*: kaggle kernels logs {KERNEL}$",
            None,
        ),
    ],
)
def test_push_ends_with_one_line_and_status_2(
    machine, push, monkeypatch, capsys, break_it, part, not_requested
):
    break_it(machine, monkeypatch)
    assert push() == 2
    assert re.search(part, only_error(capsys.readouterr().err))
    assert not_requested is None or machine.server.count(not_requested) == 0


@pytest.mark.slow
def test_push_advises_a_command_that_shows_the_log(machine):
    machine.server.add_notebook(KERNEL, "ERROR")
    finished = machine.call(str(Path(sys.executable).with_name("kaggle")), "kernels", "logs", KERNEL)
    assert (finished.returncode, finished.stdout.strip()) == (0, "No module named 'dicomsdl'")


def dry_run(folders, **changes: object) -> None:
    given = {"bundle": folders.bundle, "kernel": folders.kernel} | changes
    arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    submit.main(["push", "--dry-run", *arguments])


def test_push_dry_run_prints_commands_that_can_be_copied(folders, capsys):
    capsys.readouterr()
    dry_run(folders, message="five folds; it's done")
    lines = capsys.readouterr().out.splitlines()
    upload = ["-p", str(folders.bundle), "--dir-mode", "zip"]
    assert [shlex.split(line, comments=True) for line in lines] == [
        ["kaggle", "datasets", "status", DATASET],
        ["kaggle", "datasets", "create", *upload],
        ["kaggle", "datasets", "version", "-m", "five folds; it's done", *upload],
        ["kaggle", "datasets", "status", DATASET],
        ["kaggle", "kernels", "status", KERNEL],
        ["kaggle", "kernels", "push", "-p", str(folders.kernel)],
        ["kaggle", "kernels", "status", KERNEL],
    ]
    assert all(subprocess.run(["sh", "-n", "-c", line], check=False).returncode == 0 for line in lines)


def test_push_refuses_folders_that_do_not_belong_together(folders, tmp_path):
    other = write_bundle(tmp_path / "other dataset", dataset="someone/other-bundle")
    with pytest.raises(UserError, match="the bundle is someone/other-bundle: make it again"):
        dry_run(folders, bundle=other)
    other = write_bundle(tmp_path / "other state", segmenter="segmenter")
    with pytest.raises(UserError, match="was made for another state of the bundle"):
        dry_run(folders, bundle=other)


def test_push_refuses_a_bundle_that_was_changed(folders):
    (folders.bundle / "notes.txt").write_text("an extra file does no harm")
    dry_run(folders)
    post = folders.bundle / "post.json"
    post.write_text(post.read_text() + " ")
    with pytest.raises(UserError, match=r"post\.json was changed or removed: make the bundle again"):
        dry_run(folders)
    post.unlink()
    with pytest.raises(UserError, match=r"post\.json was changed or removed"):
        dry_run(folders)
    path = folders.bundle / "dataset-metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id": "someone/else"}))
    with pytest.raises(UserError, match=r"dataset-metadata\.json was changed: make the bundle again"):
        dry_run(folders)
