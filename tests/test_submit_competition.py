"""submit: exact arguments of the kaggle program, the score at the end, and each failure in plain words."""

import shlex

import pytest
from kaggle_files import COMPETITION, KERNEL, RecordingKaggle, write_bundle

import submit
from src.core.errors import UserError
from src.submit.competition import read_submissions

HEADER = "ref,fileName,date,description,status,publicScore,privateScore\n"
OLD = "1,submission.csv,2026-11-01 10:00:00,five folds,SubmissionStatus.COMPLETE,0.5,0.6\n"
TAKEN = "Successfully submitted to RSNA 2023 Abdominal Trauma Detection\n4 submissions remaining today.\n"


def listed(status: str, public: str = "", private: str = "") -> str:
    return f"{HEADER}2,submission.csv,2026-11-02 10:00:00,five folds,{status},{public},{private}\n{OLD}"


@pytest.fixture
def kaggle(tmp_path, monkeypatch) -> RecordingKaggle:
    return RecordingKaggle(tmp_path / "program", monkeypatch)


def submitted(*more: str, message: str = "five folds") -> None:
    fast = ["--version", "3", "--message", message, "--poll-seconds", "0.01"]
    submit.main(["submit", *(more or ["--id", KERNEL]), *fast])


def answers(submissions: list, submit: object = TAKEN) -> dict[str, list]:
    return {"competitions submissions": submissions, "competitions submit": [submit]}


def test_the_notebook_is_submitted_and_its_score_is_shown(kaggle, capsys):
    pending = listed("SubmissionStatus.PENDING")
    done = listed("SubmissionStatus.COMPLETE", "0.41", "0.43")
    kaggle.answer(answers([HEADER + OLD, HEADER + OLD, pending, done]))
    submitted()
    look = ["competitions", "submissions", "-c", COMPETITION, "--csv"]
    assert kaggle.calls == [
        look,
        [
            *("competitions", "submit", "-c", COMPETITION, "-f", "submission.csv"),
            *("-k", KERNEL, "-v", "3", "-m", "five folds"),
        ],
        *([look] * 3),
    ]
    shown = capsys.readouterr().out
    assert "4 submissions remaining today." in shown
    assert [line.split("submission: ")[1] for line in shown.splitlines() if "submission: " in line] == [
        "not in the list yet",
        "pending",
        "complete",
    ]
    assert "public score: 0.41, private score: 0.43" in shown


def test_notebook_and_competition_come_from_the_kernel_folder(kaggle, tmp_path):
    bundle, kernel = write_bundle(tmp_path / "bundle"), str(tmp_path / "kernel")
    made = ["--bundle", str(bundle), "--id", KERNEL, "--output", kernel, "--competition", "another-one"]
    submit.main(["kernel", *made])
    kaggle.answer(answers(["No submissions found\n", listed("complete", "0.4")]))
    submitted("--kernel", kernel)
    assert kaggle.calls[1][:8] == [
        *("competitions", "submit", "-c", "another-one"),
        *("-f", "submission.csv", "-k", KERNEL),
    ]


def test_the_list_of_an_older_program_without_numbers_is_read(kaggle, capsys):
    header = "fileName,date,description,status,publicScore,privateScore\n"
    old = "submission.csv,2026-11-01 10:00:00,five folds,complete,0.5,0.6\n"
    new = 'submission.csv,2026-11-02 10:00:00,"five folds",complete,0.41,\n'
    warning = "Warning: Looks like you're using an outdated API Version, please consider updating\n"
    kaggle.answer(answers([warning + header + old, warning + header + new + old]))
    submitted()
    assert "public score: 0.41, private score: not shown" in capsys.readouterr().out


FORBIDDEN = f"403 Client Error: Forbidden for url: https://www.kaggle.com/api/v1/competitions/{COMPETITION}\n"
NOT_YET = "400 Client Error: Bad Request: the notebook has not finished running\n"


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (answers([(FORBIDDEN, 1)]), f"not accepted.*competitions/{COMPETITION}/rules"),
        (answers([HEADER], (FORBIDDEN, 1)), "rules of the competition are not accepted"),
        (answers([HEADER], "Could not find competition - please verify\n"), "Kaggle finds no such thing"),
        (answers([HEADER], (NOT_YET, 1)), "could not submit version 3 of .*has not finished running"),
        (
            answers([HEADER], ("404 Client Error: Not Found for url: x\n", 1)),
            "are the id and the version",
        ),
        (answers([HEADER], ("You have reached the submission limit\n", 1)), "no further submission today"),
        (answers([HEADER + OLD, listed("SubmissionStatus.ERROR")]), f"not score version 3 of {KERNEL}"),
        (answers(["gibberish\n"]), "list of submissions is not understood: gibberish"),
    ],
)
def test_a_failure_is_one_line_that_says_what_to_do(kaggle, given, part):
    kaggle.answer(given)
    with pytest.raises(UserError, match=part) as caught:
        submitted()
    assert "\n" not in str(caught.value)


def test_a_score_that_takes_too_long_says_how_to_look_later(kaggle):
    kaggle.answer(answers([HEADER + OLD, listed("SubmissionStatus.PENDING")]))
    with pytest.raises(UserError, match=r"still pending after .*: kaggle competitions submissions"):
        submitted("--id", KERNEL, "--score-hours", "0.00002")


def test_a_dry_run_shows_commands_that_can_be_copied_and_runs_nothing(kaggle, capsys):
    submitted("--id", KERNEL, "--dry-run", message="it's #1")
    lines = capsys.readouterr().out.splitlines()
    assert kaggle.calls == []
    assert [shlex.split(line, comments=True) for line in lines] == [
        [
            *("kaggle", "competitions", "submit", "-c", COMPETITION, "-f", "submission.csv"),
            *("-k", KERNEL, "-v", "3", "-m", "it's #1"),
        ],
        ["kaggle", "competitions", "submissions", "-c", COMPETITION, "--csv"],
    ]


def test_a_table_with_odd_descriptions_is_read():
    text = f'{HEADER}3,s.csv,d,"a, ""quoted"" text",SubmissionStatus.COMPLETE,1,2\nWarning: old\n'
    (row,) = read_submissions(text)
    assert row["description"] == 'a, "quoted" text' and row["privateScore"] == "2"
