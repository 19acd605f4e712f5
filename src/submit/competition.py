"""Submit a notebook's output to the competition, and wait for the score."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass

from src.core.errors import UserError
from src.core.log import say, warn
from src.submit.failures import KaggleError
from src.submit.kaggle_program import command_line, run_kaggle
from src.submit.kernel_folder import read_kernel
from src.submit.options import COMPETITION, SubmitOptions
from src.submit.waiting import LOOK_LIMIT_S, PATIENCE, wait_for

FILE = "submission.csv"
Row = dict[str, str]


@dataclass(frozen=True)
class _Submission:
    """A version of a notebook that is handed in."""

    notebook: str
    version: int
    competition: str
    message: str

    @property
    def name(self) -> str:
        return f"version {self.version} of {self.notebook}"

    @property
    def note(self) -> str:
        """What Kaggle shows beside it. Its list of submissions tells neither notebook nor version."""
        return f"{self.message} ({self.name})"

    @property
    def hand_in_command(self) -> list[str]:
        return [
            *("competitions", "submit", "-c", self.competition, "-f", FILE, "-k", self.notebook),
            *("-v", str(self.version), "-m", self.note),
        ]

    @property
    def list_command(self) -> list[str]:
        return ["competitions", "submissions", "-c", self.competition, "--csv"]

    @property
    def page(self) -> str:
        return f"https://www.kaggle.com/competitions/{self.competition}/submissions"

    def read_list(self) -> list[Row]:
        """Submissions of the team, the newest first."""
        told = run_kaggle(
            self.list_command, "see the submissions", competition=self.competition, limit_s=LOOK_LIMIT_S
        )
        return read_submissions(told)


def submit(options: SubmitOptions) -> None:
    """Submit, wait, and show the public and the private score.

    What was handed in before, with the same message, and still waits for its score is not handed in again.

    Raises:
        UserError: Kaggle could not score the submission, or does not show it.
        KaggleError: the kaggle program failed.
    """
    submission = _read_options(options)
    if options.dry_run:
        say(command_line(submission.hand_in_command))
        say(f"{command_line(submission.list_command)}  # until the status is complete")
        return
    rows = submission.read_list()
    before = {row["ref"] for row in rows}
    pending = [row for row in rows if row["description"] == submission.note and _status(row) == "pending"]
    if pending:
        say(
            f"{submission.name} was handed in with this message on {pending[0]['date']} and still waits for "
            "its score: it is not handed in again"
        )
        before.remove(pending[0]["ref"])
    else:
        told = run_kaggle(
            submission.hand_in_command, f"submit {submission.name}", competition=submission.competition
        )
        for line in told.strip().splitlines():
            say(line)
    row = _wait_for_score(options, submission, before)
    if _status(row) == "error":
        raise UserError(
            f"Kaggle could not score {submission.name}: {submission.page} says why; there it ran on the "
            "hidden test images, which are many more than those that it ran on before"
        )
    scores = {name: row.get(f"{name}Score") or "not shown" for name in ("public", "private")}
    say(f"public score: {scores['public']}, private score: {scores['private']} ({submission.page})")


def _read_options(options: SubmitOptions) -> _Submission:
    notebook, competition = options.id, options.competition
    if options.kernel is not None:
        kernel = read_kernel(options.kernel)
        notebook, competition = kernel.id, competition or kernel.competition
    return _Submission(notebook, options.version, competition or COMPETITION, options.message.strip())


def _wait_for_score(options: SubmitOptions, submission: _Submission, before: set[str]) -> Row:
    """Our row of the list, once it has a score or gets none.

    Args:
        before: numbers of the submissions that are not ours.
    """
    found: Row = {}
    missed = 0

    def look() -> str:
        nonlocal missed
        new = [row for row in submission.read_list() if row["ref"] not in before]
        ours = [row for row in new if row["description"] == submission.note]
        missed += not ours
        if not ours and missed > PATIENCE:
            ours = new  # Kaggle may have changed our message; sooner it may be another member's submission
            if ours and missed == PATIENCE + 1:
                warn(f"no submission has the message {submission.note!r}: the newest is taken for it")
        if ours:
            found.update(ours[0])
            return _status(ours[0])
        if missed > PATIENCE:
            raise UserError(
                f"{submission.name} was handed in, but {PATIENCE} looks at the list show no new submission: "
                f"see {submission.page}, and submit again if it is not there"
            )
        return "not in the list yet"

    wait_for(
        "submission",
        look,
        lambda answer: answer in ("complete", "error"),
        poll_s=options.poll_seconds,
        limit_s=options.score_hours * 3600,
        later=command_line(submission.list_command),
    )
    return found


def read_submissions(text: str) -> list[Row]:
    """The table that `kaggle competitions submissions --csv` prints; warnings may stand before it.

    Raises:
        KaggleError: there is no such table.
    """
    lines = text.splitlines()
    if any(line.strip().lower() == "no submissions found" for line in lines):
        return []
    wanted = {"ref", "description", "status"}
    starts = [number for number, line in enumerate(lines) if wanted <= set(line.split(","))]
    if not starts:
        said = " ".join(lines)[:200]
        raise KaggleError("other", f"the kaggle program's list of submissions is not understood: {said}")
    return list(_complete(csv.DictReader(lines[starts[0] :])))


def _complete(rows: Iterable[Row]) -> Iterable[Row]:
    """Without what is no row of the table, such as a warning after it."""
    return (row for row in rows if row.get("status") and row.get("description") is not None)


def _status(row: Row) -> str:
    """`pending` of `SubmissionStatus.PENDING`."""
    return row["status"].rpartition(".")[2].lower()
