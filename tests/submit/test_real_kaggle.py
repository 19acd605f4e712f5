"""push and submit with the real kaggle program, against a server that answers as Kaggle does."""

import io
import json
import re
import shlex
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

import submit
from tests.helpers.kaggle_folders import COMPETITION, DATASET, KERNEL, write_bundle
from tests.helpers.kaggle_server import KaggleMachine, KaggleServer

NOTE = f"five folds (version 1 of {KERNEL})"


@pytest.fixture
def folders(tmp_path) -> SimpleNamespace:
    """A bundle with a folder in a folder and a wheel, and its notebook."""
    bundle, kernel = tmp_path / "bundle", tmp_path / "kernel"
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a.py", "")
    files = {
        "infer.py": b"print()\n",
        "src/core/part.py": b"\n",
        "models/0_run/fold0/model.safetensors": b"weights",
        "wheels/a-1-py3-none-any.whl": wheel.getvalue(),
    }
    write_bundle(bundle, files)
    submit.main(["kernel", "--bundle", str(bundle), "--id", KERNEL, "--output", str(kernel)])
    return SimpleNamespace(bundle=bundle, kernel=kernel)


@pytest.fixture
def push(machine, folders) -> Callable[..., int]:
    given = ["push", "--bundle", folders.bundle, "--kernel", folders.kernel, "--poll-seconds", 0.01]
    return lambda *more: machine.submit(*given, *more)


@pytest.fixture
def hand_in(machine) -> Callable[..., int]:
    given = ["submit", "--id", KERNEL, "--version", 1, "--message", "five folds", "--poll-seconds", 0.01]
    return lambda *more: machine.submit(*given, *more)


def uploaded_files(bundle: Path) -> dict[str, bytes]:
    """What is to arrive: the program keeps the metadata to itself."""
    files = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "dataset-metadata.json"}


def states(shown: str, what: str) -> list[str]:
    return [line.split(f"{what}: ")[1] for line in shown.splitlines() if f"  {what}: " in line]


def test_push_creates_the_dataset_runs_the_notebook_and_shows_its_version(machine, push, folders, capsys):
    assert push() == 0
    server = machine.server
    assert server.unpacked(DATASET) == uploaded_files(folders.bundle)
    (pushed,) = server.notebooks[KERNEL]
    assert pushed["datasetDataSources"] == [DATASET] and pushed["competitionDataSources"] == [COMPETITION]
    assert pushed["isPrivate"] and pushed["enableGpu"] and not pushed["enableInternet"]
    assert pushed["machineShape"] == "NvidiaTeslaT4"
    made = nbformat.read(folders.kernel / "predict.ipynb", as_version=4)
    assert [cell["source"] for cell in json.loads(pushed["text"])["cells"]] == [
        cell.source for cell in made.cells
    ]
    shown = capsys.readouterr()
    assert states(shown.out, f"dataset {DATASET}") == ["blobs_received", "ready"]
    assert states(shown.out, f"notebook {KERNEL}") == ["queued", "running", "complete"]
    command = shlex.split(shown.out.splitlines()[-1])
    assert command[:7] == [
        *("python", "submit.py", "submit", "--kernel", str(folders.kernel), "--version", "1")
    ]
    assert "Upload successful: models.zip" in shown.err  # progress is passed on


def test_push_again_makes_a_version_and_the_state_before_is_not_taken_for_it(machine, push, folders, capsys):
    assert push() == 0
    capsys.readouterr()
    machine.server.running = ["RUNNING", "COMPLETE"]
    assert push("--message", "six folds") == 0
    (body,) = [body for name, body in machine.server.requests if name == "CreateDatasetVersion"]
    assert body["body"]["versionNotes"] == "six folds"
    assert machine.server.unpacked(DATASET) == uploaded_files(folders.bundle)
    shown = capsys.readouterr().out
    assert states(shown, f"dataset {DATASET}") == ["at version 1", "ready"]
    assert states(shown, f"notebook {KERNEL}")[1:] == ["running", "complete"]
    assert "--version 2 " in shown.splitlines()[-1]


def test_submit_waits_for_the_score_and_hands_in_once(machine, push, hand_in, capsys):
    assert push() == 0
    assert hand_in() == 0
    (body,) = [body for name, body in machine.server.requests if name == "CreateCodeSubmission"]
    assert body == {
        "competitionName": COMPETITION,
        "kernelOwner": "someone",
        "kernelSlug": "trauma-predict",
        "kernelVersion": 1,
        "fileName": "submission.csv",
        "submissionDescription": NOTE,
    }
    shown = capsys.readouterr().out
    assert "4 submissions remaining today." in shown and "Successfully submitted" in shown
    assert states(shown, "submission") == ["pending", "complete"]
    assert "public score: 0.41, private score: 0.43" in shown


def test_submit_does_not_hand_in_again_what_waits_for_its_score(machine, hand_in, capsys):
    machine.server.add_submission("of another member")
    machine.server.add_submission(NOTE)
    machine.server.scoring = ["PENDING", "PENDING", "PENDING", "COMPLETE"]
    assert hand_in() == 0
    assert machine.server.count("CreateCodeSubmission") == 0
    assert "public score: 0.41" in capsys.readouterr().out


RULES = "You must accept this competition's rules before you'll be able to submit to it"
TITLE = 'The requested title "A bundle" is already in use by a dataset. Please choose another title.'
QUOTA = "Maximum weekly GPU quota of 30.00 hours reached."
PHONE = "You must verify your phone number before you can use GPUs"
SOURCES = {"versionNumber": 1, "url": "x", "invalidDatasetSources": [DATASET]}


def forget_login(machine: KaggleMachine, monkeypatch) -> None:
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")


def fails(*answer: object) -> Callable[..., None]:
    return lambda machine, monkeypatch: machine.server.fail(*answer)


def has(**changes: object) -> Callable[..., None]:
    def change(machine: KaggleMachine, monkeypatch) -> None:
        for name, value in changes.items():
            assert name in KaggleServer.__dataclass_fields__
            setattr(machine.server, name, value)

    return change


def one_error_line(capsys) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback (most recent call last):" not in lines
    assert lines[-1].startswith("error: ") and sum(line.startswith("error: ") for line in lines) == 1
    return lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "part", "not_asked"),
    [
        (forget_login, "kaggle auth login", "GetDatasetStatus"),
        (lambda machine, patch: patch.setenv("KAGGLE_KEY", "wrong"), "kaggle auth login", "StartBlobUpload"),
        (lambda machine, _: machine.close_server(), "is there a network", "StartBlobUpload"),
        (fails("GetDatasetStatus", 503, "Service Unavailable"), "could not see the dataset", "CreateDataset"),
        (fails("CreateDataset", 200, TITLE), "already in use .*another --title and --id", "SaveKernel"),
        (fails("upload", 400, "", 1), "Upload unsuccessful: .*push again", "SaveKernel"),
        (has(unpacking=["BLOBS_RECEIVED", "FAILED"]), r"could not make the dataset \(failed\)", "SaveKernel"),
        (fails("SaveKernel", 200, QUOTA), "weekly GPU quota of 30.00 hours reached.*--gpu false", None),
        (fails("SaveKernel", 200, PHONE), "Phone verification", None),
        (fails("SaveKernel", 403, RULES), f"competitions/{COMPETITION}/rules", None),
        (fails("SaveKernel", 500, "Internal error encountered."), "Internal error encountered", None),
        (
            has(answers={"SaveKernel": [(200, SOURCES)]}),
            r"not valid dataset sources.*'someone/trauma-bundle'",
            None,
        ),
        (
            has(running=["RUNNING", "ERROR"], failure_message="Your notebook ran out of memory"),
            rf"ended with error \(Your notebook ran out of memory\).* kaggle kernels logs {KERNEL}$",
            None,
        ),
    ],
)
def test_push_ends_with_one_line_and_status_2(machine, push, monkeypatch, capsys, break_it, part, not_asked):
    break_it(machine, monkeypatch)
    assert push() == 2
    assert re.search(part, one_error_line(capsys))
    assert not_asked is None or machine.server.count(not_asked) == 0


@pytest.mark.slow
def test_push_looks_again_after_faults_of_the_server(machine, push, capsys):
    machine.server.fail("GetKernelSessionStatus", 503, "The service is currently unavailable.", times=3)
    assert push() == 0
    shown = capsys.readouterr()
    assert "currently unavailable" in shown.err and "trying again" in shown.err
    assert "--version 1 " in shown.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "part"),
    [
        (fails("ListSubmissions", 403, RULES), f"competitions/{COMPETITION}/rules"),
        (fails("CreateCodeSubmission", 403, RULES), f"competitions/{COMPETITION}/rules"),
        (fails("CreateCodeSubmission", 400, "You have reached the submission limit"), "submission limit"),
        (fails("CreateCodeSubmission", 404, "Notebook version not found"), "Notebook version not found"),
        (has(scoring=["PENDING", "ERROR"]), f"could not score version 1 of {KERNEL}: https://www.kaggle"),
    ],
)
def test_submit_ends_with_one_line_and_status_2(machine, hand_in, monkeypatch, capsys, break_it, part):
    machine.server.notebooks[KERNEL] = [{}]
    break_it(machine, monkeypatch)
    assert hand_in() == 2
    assert re.search(part, one_error_line(capsys))


@pytest.mark.slow
def test_the_commands_that_messages_advise_are_understood(machine, push):
    assert push() == 0
    logs = machine.call(str(Path(sys.executable).with_name("kaggle")), "kernels", "logs", KERNEL)
    assert (logs.returncode, logs.stdout.strip()) == (0, "No module named 'dicomsdl'")
