"""run_kaggle and wait_for, with small programs in place of the kaggle program."""

import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from src.core.errors import UserError
from src.submit.kaggle_program import PATIENCE, KaggleError, run_kaggle, wait_for


@pytest.fixture
def write_program(tmp_path, monkeypatch):
    """Write a program named kaggle, the only one that is found, into a folder of PATH."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))

    def write(*lines: str, at: Path = folder) -> None:
        at.mkdir(exist_ok=True)
        (at / "kaggle").write_text("\n".join(["#!/bin/sh", *lines, ""]))
        (at / "kaggle").chmod(0o755)

    return write


def test_run_kaggle_prefers_the_program_beside_this_python(write_program, tmp_path):
    write_program("echo on PATH: $1")
    assert run_kaggle(["quota"], "look") == "on PATH: quota\n"
    write_program("echo beside", at=tmp_path / "bin")
    assert run_kaggle(["quota"], "look") == "beside\n"


def test_run_kaggle_names_a_program_that_is_missing_or_does_not_start(write_program, tmp_path):
    with pytest.raises(KaggleError, match="no kaggle program: python -m pip install kaggle six"):
        run_kaggle(["quota"], "look")
    write_program()
    (tmp_path / "elsewhere" / "kaggle").write_text("#!/nowhere/python\n")
    with pytest.raises(KaggleError, match=r"does not start: .*No such file"):
        run_kaggle(["quota"], "look")


def test_run_kaggle_ends_a_program_that_hangs(write_program):
    write_program("echo begun", "exec /bin/sleep 60")
    begin = time.monotonic()
    with pytest.raises(KaggleError, match=r"no answer .* in 0\.5 s - is there a network") as caught:
        run_kaggle(["quota"], "look", limit_s=0.5)
    assert not caught.value.is_final and time.monotonic() - begin < 30


def test_run_kaggle_shows_progress_where_asked(write_program, capsys):
    write_program(r"printf 'upload\n  0%%|  |\r100%%|##|\nunended \303\244'")
    text = "upload\n  0%|  |\r100%|##|\nunended ä"
    assert run_kaggle(["quota"], "look") == text
    assert capsys.readouterr().err == ""
    run_kaggle(["quota"], "look", show=True)
    assert capsys.readouterr().err == text + "\n"


def test_run_kaggle_asks_for_no_verbose_output_which_has_credentials(write_program, monkeypatch):
    monkeypatch.setenv("VERBOSE", "1")
    write_program('echo "[$VERBOSE]"')
    assert run_kaggle(["quota"], "look") == "[]\n"


@pytest.mark.parametrize(
    ("lines", "status", "part"),
    [
        (["Traceback (most recent call last):", "ModuleNotFoundError: No module named six"], 1, "kaggle six"),
        (["Permission 'competitions.submissions.create' was denied"], 1, "tab Rules"),
        (["You must verify your phone number before you can use GPUs"], 1, "Phone verification"),
        (["403 Client Error: Forbidden for url: https://x/v1/competitions.Service/X"], 1, "tab Rules"),
        (
            ["Upload unsuccessful: a", "Upload successful: b", "Upload unsuccessful: c"],
            0,
            ": a; .*: c - ",
        ),
        (["Starting upload for file infer.py", "User cancelled operation"], 0, ": User cancelled operation$"),
        (["Warning: outdated", "an error without advice"], 1, "could not look: an error without advice$"),
        ([], 3, "exit status 3 of the kaggle program"),
    ],
)
def test_run_kaggle_adds_advice_to_the_words_of_the_program(write_program, lines, status, part):
    write_program(*(f'echo "{line}"' for line in lines), f"exit {status}")
    with pytest.raises(KaggleError, match=part) as caught:
        run_kaggle(["quota"], "look")
    assert "\n" not in str(caught.value)


class Polls:
    """Answers, one after the other; the last one stays. Those in brackets are raised as errors."""

    def __init__(self, answers: Iterable[str]) -> None:
        self.answers, self.count = list(answers), 0

    def __call__(self) -> str:
        answer = self.answers[min(self.count, len(self.answers) - 1)]
        self.count += 1
        if answer.startswith("["):
            raise KaggleError("look", answer.strip("[]"))
        return answer


def wait(polls: Polls, **changes: object) -> str:
    given = {"poll_s": 0.0, "limit_s": 60.0, "later": "kaggle kernels status a/b"} | changes
    return wait_for("notebook", polls, lambda state: state in ("complete", "error"), **given)


def test_wait_for_tries_again_after_errors_that_may_pass(capsys):
    fault = ["[503 Server Error]"] * PATIENCE
    assert wait(Polls([*fault, "running", *fault, "complete"])) == "complete"
    printed = capsys.readouterr()
    assert printed.err.count("; trying again") == 2 * PATIENCE
    assert [line.split("  ")[1] for line in printed.out.splitlines()] == [
        "notebook: running",
        "notebook: complete",
    ]
    polls = Polls(["[timed out]"])
    with pytest.raises(KaggleError, match="timed out - is there a network"):
        wait(polls)
    assert polls.count == PATIENCE + 1


def test_wait_for_ends_at_once_with_an_error_that_remains():
    polls = Polls(["running", "[Authentication required to call the Kaggle API.]", "complete"])
    with pytest.raises(KaggleError, match="kaggle auth login"):
        wait(polls)
    assert polls.count == 2


def test_wait_for_says_how_to_look_later_when_the_time_is_up():
    with pytest.raises(UserError, match=r"is still running after .*look later with: kaggle kernels status"):
        wait(Polls(["running"]), limit_s=-1.0)


def test_wait_for_does_not_take_the_state_before_for_the_new_one():
    polls = Polls(["complete", "complete", "running", "complete"])
    assert wait(polls, before="complete") == "complete" and polls.count == 4
    polls = Polls(["error"])
    assert wait(polls, before="complete") == "error" and polls.count == 1
    assert wait(polls := Polls(["complete"]), before="complete") == "complete"
    assert polls.count == PATIENCE + 1
