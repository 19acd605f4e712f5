"""submit: exact arguments of the kaggle program, the score at the end, and each failure in plain words."""

import shlex

import pytest

import submit
from src.core.errors import UserError
from src.submit import competition
from src.submit.competition import read_submissions
from src.submit.failures import KaggleError
from src.submit.waiting import PATIENCE
from tests.helpers.kaggle_folders import COMPETITION, KERNEL, write_bundle, write_kernel
from tests.helpers.recording_kaggle import RecordingKaggle

NOTE = f"five folds (version 3 of {KERNEL})"
HEADER = "ref,fileName,date,description,status,publicScore,privateScore\n"
TAKEN = "Successfully submitted to RSNA 2023 Abdominal Trauma Detection\n4 submissions remaining today.\n"
LOOK = ["competitions", "submissions", "-c", COMPETITION, "--csv"]
HAND_IN = [
    *("competitions", "submit", "-c", COMPETITION, "-f", "submission.csv"),
    *("-k", KERNEL, "-v", "3", "-m", NOTE),
]


def row(ref: int, status: str, note: str = NOTE, public: str = "", private: str = "") -> str:
    return (
        f"{ref},submission.csv,2026-11-0{ref} 10:00:00,{note},SubmissionStatus.{status},{public},{private}\n"
    )


OLD = HEADER + row(1, "COMPLETE", public="0.5", private="0.6")


def listed(*rows: str) -> str:
    """The newest first, above what was there before."""
    return HEADER + "".join(rows) + OLD.removeprefix(HEADER)


PENDING = listed(row(2, "PENDING"))
DONE = listed(row(2, "COMPLETE", public="0.41", private="0.43"))


@pytest.fixture
def kaggle(tmp_path, monkeypatch) -> RecordingKaggle:
    return RecordingKaggle(tmp_path / "program", monkeypatch)


def submitted(*more: str, message: str = "five folds") -> None:
    fast = ["--version", "3", "--message", message, "--poll-seconds", "0.01"]
    submit.main(["submit", *(more or ["--id", KERNEL]), *fast])


def answers(submissions: list, submit: object = TAKEN) -> dict[str, list]:
    return {"competitions submissions": submissions, "competitions submit": [submit]}


def test_the_notebook_is_submitted_and_its_score_is_shown(kaggle, capsys):
    kaggle.answer(answers([OLD, OLD, PENDING, DONE]))
    submitted()
    assert kaggle.calls == [LOOK, HAND_IN, *([LOOK] * 3)]
    shown = capsys.readouterr().out
    assert "4 submissions remaining today." in shown
    assert [line.split("submission: ")[1] for line in shown.splitlines() if "submission: " in line] == [
        "not in the list yet",
        "pending",
        "complete",
    ]
    assert "public score: 0.41, private score: 0.43" in shown


def test_notebook_and_competition_come_from_the_kernel_folder(kaggle, tmp_path):
    kernel = write_kernel(tmp_path / "kernel", write_bundle(tmp_path / "bundle"), competition="another-one")
    kaggle.answer(answers(["No submissions found\n", DONE]))
    submitted("--kernel", str(kernel))
    assert kaggle.calls[1][:8] == [
        *("competitions", "submit", "-c", "another-one"),
        *("-f", "submission.csv", "-k", KERNEL),
    ]


def test_spaces_around_the_message_do_not_count(kaggle):
    kaggle.answer(answers([OLD, DONE]))
    submitted(message="  five folds ")
    assert HAND_IN in kaggle.calls


def test_among_new_submissions_the_one_with_our_message_is_ours(kaggle, capsys):
    theirs = row(3, "COMPLETE", note="somebody else's", public="0.9", private="0.9")
    kaggle.answer(answers([OLD, listed(theirs, row(2, "COMPLETE", public="0.41", private="0.43"))]))
    submitted()
    assert "public score: 0.41" in capsys.readouterr().out


def test_what_another_member_submits_before_ours_is_listed_is_not_ours(kaggle, capsys):
    theirs = row(3, "COMPLETE", note="somebody else's", public="0.9", private="0.9")
    ours = row(2, "COMPLETE", public="0.41", private="0.43")
    kaggle.answer(answers([OLD, *[listed(theirs)] * PATIENCE, listed(theirs, ours)]))
    submitted()
    assert "public score: 0.41" in capsys.readouterr().out


def test_a_message_that_kaggle_changed_is_no_hindrance(kaggle, capsys):
    changed = [row(number, "COMPLETE", note="five fol", public=f"0.{number}") for number in (3, 2)]
    kaggle.answer(answers([OLD, listed(*changed)]))
    submitted()
    shown = capsys.readouterr()
    assert "public score: 0.3, private score: not shown" in shown.out
    assert f"no submission has the message '{NOTE}': the newest is taken for it" in shown.err
    assert kaggle.calls.count(LOOK) == 1 + PATIENCE + 1


def test_what_waits_for_its_score_is_not_handed_in_again(kaggle, capsys):
    kaggle.answer(answers([PENDING, PENDING, DONE]))
    submitted()
    assert kaggle.calls == [LOOK] * 3
    shown = capsys.readouterr().out
    assert f"version 3 of {KERNEL} was handed in with this message on 2026-11-02" in shown
    assert "it is not handed in again" in shown and "public score: 0.41" in shown


@pytest.mark.parametrize(
    "there",
    [
        row(2, "PENDING", note=f"five folds (version 2 of {KERNEL})"),
        row(2, "PENDING", note=f"four folds (version 3 of {KERNEL})"),
        row(2, "COMPLETE", public="0.4"),
        row(2, "ERROR"),
    ],
)
def test_another_version_another_message_and_what_has_its_score_are_no_hindrance(kaggle, capsys, there):
    kaggle.answer(answers([listed(there), listed(row(3, "COMPLETE", public="0.45"), there)]))
    submitted()
    assert kaggle.calls == [LOOK, HAND_IN, LOOK]
    assert "public score: 0.45" in capsys.readouterr().out


def test_a_submission_that_never_shows_is_given_up(kaggle):
    kaggle.answer(answers([OLD]))
    with pytest.raises(UserError, match="but 10 looks at the list show no new submission: see https"):
        submitted()
    assert kaggle.calls.count(LOOK) == 1 + 11


def test_faults_while_waiting_pass(kaggle, capsys):
    broken = ["<html>", ("Internal error encountered.\n", 1), ("404 Client Error: Not Found\n", 1)]
    kaggle.answer(answers([OLD, *broken, DONE]))
    submitted()
    assert capsys.readouterr().err.count("; trying again") == len(broken)


def test_a_look_that_hangs_is_ended(kaggle, monkeypatch, capsys):
    monkeypatch.setattr(competition, "LOOK_LIMIT_S", 1.5)
    kaggle.answer(answers([OLD, (DONE, 0, 60), DONE]))
    submitted()
    assert "is there a network?; trying again" in capsys.readouterr().err


FORBIDDEN = f"403 Client Error: Forbidden for url: https://www.kaggle.com/api/v1/competitions/{COMPETITION}\n"
NOT_YET = "400 Client Error: Bad Request: the notebook has not finished running\n"


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (answers([(FORBIDDEN, 1)]), f"not accepted.*competitions/{COMPETITION}/rules"),
        (answers([OLD], (FORBIDDEN, 1)), "rules of the competition are not accepted"),
        (answers([OLD], "Could not find competition - please verify\n"), "Kaggle finds no such thing"),
        (answers([OLD], (NOT_YET, 1)), "could not submit version 3 of .*has not finished running"),
        (answers([OLD], ("404 Client Error: Not Found for url: x\n", 1)), "are the id and the version"),
        (answers([OLD], ("You have reached the submission limit\n", 1)), "no further submission today"),
        (answers([OLD, listed(row(2, "ERROR"))]), f"not score version 3 of {KERNEL}"),
        (answers(["gibberish\n"]), "list of submissions is not understood: gibberish"),
    ],
)
def test_a_failure_is_one_line_that_says_what_to_do(kaggle, given, part):
    kaggle.answer(given)
    with pytest.raises(UserError, match=part) as caught:
        submitted()
    assert "\n" not in str(caught.value)


def test_a_score_that_takes_too_long_says_how_to_look_later(kaggle):
    kaggle.answer(answers([OLD, PENDING]))
    with pytest.raises(UserError, match=r"still pending after .*: kaggle competitions submissions"):
        submitted("--id", KERNEL, "--score-hours", "0.00002")


def test_a_dry_run_shows_commands_that_can_be_copied_and_runs_nothing(kaggle, capsys):
    submitted("--id", KERNEL, "--dry-run", message="it's #1")
    lines = capsys.readouterr().out.splitlines()
    assert kaggle.calls == []
    assert [shlex.split(line, comments=True) for line in lines] == [
        ["kaggle", *HAND_IN[:-1], f"it's #1 (version 3 of {KERNEL})"],
        ["kaggle", *LOOK],
    ]


def test_a_table_with_odd_descriptions_is_read():
    text = (
        f'Warning: old\n{HEADER}3,s.csv,d,"a, ""quoted"" text",SubmissionStatus.COMPLETE,1,2\nWarning: old\n'
    )
    (only,) = read_submissions(text)
    assert only["description"] == 'a, "quoted" text' and only["privateScore"] == "2"


def test_what_is_no_table_may_pass():
    with pytest.raises(KaggleError, match="not understood: <html>") as caught:
        read_submissions("<html>\n")
    assert caught.value.kind == "other"
