"""submit: with the real kaggle program against a server that answers as Kaggle does."""

import re
import shlex
from collections.abc import Callable

import pytest

import submit
from src.submit.competition import read_submissions
from src.submit.kaggle_program import KaggleError
from tests.helpers.kaggle_folders import COMPETITION, KERNEL, write_bundle, write_kernel
from tests.helpers.kaggle_server import fails, has, only_error, printed_states

NOTE = f"five folds (version 1 of {KERNEL})"
GIVEN = ["submit", "--id", KERNEL, "--version", "1", "--message", " five folds ", "--poll-seconds", "0.01"]
RULES = "You must accept this competition's rules before you'll be able to submit to it"


@pytest.fixture
def hand_in(machine) -> Callable[[], int]:
    machine.server.add_notebook(KERNEL, "COMPLETE")
    return lambda: machine.submit(*GIVEN)


def test_submit_waits_for_the_score(machine, hand_in, capsys):
    machine.server.add_submission(NOTE, "COMPLETE")  # of the same version, submitted before
    machine.server.scoring = ["PENDING", "PENDING", "COMPLETE"]
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
    printed = capsys.readouterr()
    assert "Successfully submitted" in printed.err
    assert printed_states(printed.out, "submission") == ["pending", "complete"]
    assert "public score: 0.41, private score: 0.43" in printed.out


def test_submit_does_not_submit_again_what_waits_for_its_score(machine, hand_in, capsys):
    machine.server.add_submission("of another member")
    machine.server.add_submission(f"five folds (version 2 of {KERNEL})")
    machine.server.add_submission(NOTE)
    machine.server.scoring = ["PENDING"] * 4 + ["COMPLETE"]
    assert hand_in() == 0
    assert machine.server.count("CreateCodeSubmission") == 0
    printed = capsys.readouterr().out
    assert "it is not submitted again" in printed and "public score: 0.41" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "part"),
    [
        (fails("CreateCodeSubmission", 403, RULES), "tab Rules"),
        (fails("CreateCodeSubmission", 400, "You have reached the submission limit"), "submission limit$"),
        (fails("CreateCodeSubmission", 404, "Notebook version not found"), "submit version 1 .* not found$"),
        (has(scoring=["PENDING", "ERROR"]), f"could not score version 1 of {KERNEL} .error.: https://www"),
        (
            has(answers={"CreateCodeSubmission": [(200, {"message": "ok"})]}),
            "is not in the list of submissions: see https://www.kaggle.com/competitions/",
        ),
    ],
)
def test_submit_ends_with_one_line_and_status_2(machine, hand_in, monkeypatch, capsys, break_it, part):
    break_it(machine, monkeypatch)
    assert hand_in() == 2
    assert re.search(part, only_error(capsys.readouterr().err))


def test_submit_dry_run_prints_commands_that_can_be_copied(capsys):
    submit.main([*GIVEN, "--dry-run", "--message", "it's #1"])
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line, comments=True) for line in lines] == [
        [
            *("kaggle", "competitions", "submit", "-c", COMPETITION, "-f", "submission.csv"),
            *("-k", KERNEL, "-v", "1", "-m", f"it's #1 (version 1 of {KERNEL})"),
        ],
        ["kaggle", "competitions", "submissions", "-c", COMPETITION, "--csv"],
    ]


def test_submit_reads_notebook_and_competition_from_the_kernel_folder(tmp_path, capsys):
    kernel = write_kernel(tmp_path / "kernel", write_bundle(tmp_path / "bundle"), competition="another-one")
    submit.main(["submit", "--kernel", str(kernel), *GIVEN[3:], "--dry-run"])
    assert f"submit -c another-one -f submission.csv -k {KERNEL} " in capsys.readouterr().out


def test_read_submissions_skips_lines_around_the_table():
    header = "ref,fileName,date,description,status,publicScore,privateScore\r\n"
    row = '3,s.csv,d,"a, ""quoted"" text",SubmissionStatus.COMPLETE,1,2\r\n'
    (only,) = read_submissions(f"Warning: old\n{header}{row}Warning: old\n")
    assert only["description"] == 'a, "quoted" text' and only["privateScore"] == "2"
    assert read_submissions("Warning: old\nNo submissions found\n") == []
    with pytest.raises(KaggleError, match="no table in '<html>'"):
        read_submissions("<html>\n")
