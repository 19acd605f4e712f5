"""The kaggle program: which one is run, for how long, and what of its output is shown."""

import time

import pytest

from src.submit.failures import KaggleError
from src.submit.kaggle_program import command_line, run_kaggle
from tests.helpers.recording_kaggle import RecordingKaggle, forget_kaggle, write_program


@pytest.fixture
def kaggle(tmp_path, monkeypatch) -> RecordingKaggle:
    return RecordingKaggle(tmp_path / "program", monkeypatch)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder that PATH names, and a Python with no kaggle program beside it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    return folder


def test_the_program_beside_the_python_that_runs_comes_first(kaggle, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    write_program(tmp_path / "elsewhere", "#!/bin/sh\necho of another environment\n")
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"), prepend=":")
    kaggle.answer({"datasets status": ["ready"]})
    assert run_kaggle(["datasets", "status", "a/b"], "look") == "ready"
    assert kaggle.calls == [["datasets", "status", "a/b"]]


def test_else_it_is_looked_for_on_the_path(elsewhere):
    write_program(elsewhere, "#!/bin/sh\necho found on PATH: $1\n")
    assert run_kaggle(["quota"], "look") == "found on PATH: quota\n"


def test_a_missing_program_is_named(elsewhere):
    with pytest.raises(KaggleError, match="no kaggle program: python -m pip install kaggle six"):
        run_kaggle(["quota"], "look")


def test_a_program_that_cannot_be_executed_is_named(elsewhere):
    write_program(elsewhere, "#!/nowhere/python\n")
    with pytest.raises(KaggleError, match="kaggle does not start: No such file"):
        run_kaggle(["quota"], "look")


def test_a_program_that_hangs_is_ended_as_a_fault_of_the_network(elsewhere):
    write_program(elsewhere, "#!/bin/sh\necho begun\n/bin/sleep 60\n")  # a child of its own holds the output
    begin = time.monotonic()
    with pytest.raises(
        KaggleError, match=r"could not look: no answer .* in 0\.5 s, is there a network"
    ) as caught:
        run_kaggle(["quota"], "look", limit_s=0.5)
    assert caught.value.kind == "network" and time.monotonic() - begin < 30


def test_without_a_limit_it_takes_as_long_as_it_takes(kaggle):
    kaggle.answer({"datasets create": [("done", 0, 1.0)]})
    assert run_kaggle(["datasets", "create"], "upload") == "done"


def test_output_is_passed_on_line_by_line_where_asked(elsewhere, capsys):
    write_program(elsewhere, "#!/bin/sh\nprintf 'upload\\n  0%%|  |\\r100%%|##|\\nunended \\303\\244'\n")
    text = "upload\n  0%|  |\r100%|##|\nunended ä"
    assert run_kaggle(["quota"], "look") == text
    assert capsys.readouterr().err == ""
    run_kaggle(["quota"], "look", shows=True)
    assert capsys.readouterr().err == text


def test_credentials_in_the_output_are_neither_shown_nor_kept(elsewhere, capsys):
    lines = (
        "POST /x\\nAuthorization: Bearer 1234\\nProxy-Authorization: Basic 1234\\nX: 1\\nauthorization: 1234"
    )
    write_program(elsewhere, f"#!/bin/sh\nprintf '{lines}'\n")
    assert run_kaggle(["quota"], "look", shows=True) == "POST /x\nX: 1\n"
    assert "1234" not in capsys.readouterr().err


def test_credentials_are_not_in_the_message_of_a_failure(elsewhere):
    write_program(elsewhere, "#!/bin/sh\necho an error\necho Authorization: Bearer invalid-1234\nexit 1\n")
    with pytest.raises(KaggleError, match="the kaggle program says: an error") as caught:
        run_kaggle(["quota"], "look")
    assert "1234" not in str(caught.value)


def test_a_command_is_shown_as_one_types_it():
    assert command_line(["datasets", "version", "-m", "it's new"]) == (
        "kaggle datasets version -m 'it'\"'\"'s new'"
    )


def test_the_real_program_without_credentials_is_explained(monkeypatch, tmp_path):
    """Nothing is sent: without credentials the program ends before it calls anyone."""
    forget_kaggle(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(KaggleError, match="could not look: Kaggle does not know you") as caught:
        run_kaggle(["datasets", "status", "someone/bundle"], "look")
    assert caught.value.kind == "no credentials"
