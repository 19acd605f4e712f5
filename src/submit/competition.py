"""Submit a version of a notebook to the competition, and wait for the score."""

import csv

from src.core.errors import UserError
from src.core.log import say
from src.submit.folders import read_kernel
from src.submit.kaggle_program import POLL_LIMIT_S, KaggleError, command_line, run_kaggle, wait_for
from src.submit.options import COMPETITION, SubmitOptions

FILE = "submission.csv"
NOT_LISTED = "not in the list yet"
Row = dict[str, str]


def submit(options: SubmitOptions) -> None:
    """Submit, wait, and print the public and the private score.

    A submission with the same message whose score is pending is not submitted again.

    Raises:
        UserError: Kaggle could not score the submission, or does not list it.
        KaggleError: the kaggle program failed.
    """
    notebook, competition = options.id, options.competition
    if options.kernel is not None:
        kernel = read_kernel(options.kernel)
        notebook, competition = kernel.id, competition or kernel.competition
    competition = competition or COMPETITION
    name = f"version {options.version} of {notebook}"
    # Kaggle's list of submissions shows neither notebook nor version, so the message has to.
    note = f"{options.message.strip()} ({name})"
    submit_notebook = [
        *("competitions", "submit", "-c", competition, "-f", FILE, "-k", str(notebook)),
        *("-v", str(options.version), "-m", note),
    ]
    list_submissions = ["competitions", "submissions", "-c", competition, "--csv"]
    page = f"https://www.kaggle.com/competitions/{competition}/submissions"
    if options.dry_run:
        say(command_line(submit_notebook))
        say(f"{command_line(list_submissions)}  # until the status is complete")
        return

    def read_ours() -> list[Row]:
        text = run_kaggle(list_submissions, "see the submissions", limit_s=POLL_LIMIT_S)
        return [row for row in read_submissions(text) if row["description"] == note]

    rows = read_ours()
    pending = [row["ref"] for row in rows if _status(row) == "pending"]
    scored = {row["ref"] for row in rows} - set(pending[:1])
    if pending:
        say(f"{name} was submitted with this message and waits for its score: it is not submitted again")
    else:
        run_kaggle(submit_notebook, f"submit {name}", show=True)
    newest: Row = {}

    def poll() -> str:
        new = [row for row in read_ours() if row["ref"] not in scored]
        newest.update(new[0] if new else {})
        return _status(newest) if newest else NOT_LISTED

    state = wait_for(
        "submission",
        poll,
        lambda state: state != "pending",
        poll_s=options.poll_seconds,
        limit_s=options.score_hours * 3600,
        later=command_line(list_submissions),
        before=NOT_LISTED,
    )
    if state == NOT_LISTED:
        raise UserError(
            f"{name} was submitted, but is not in the list of submissions: see {page}, and submit again if "
            "it is not there"
        )
    if state != "complete":
        raise UserError(
            f"Kaggle could not score {name} ({state}): {page} says why; it ran on the hidden test images, "
            "which are many more than the public ones"
        )
    scores = [newest.get(f"{which}Score") or "not shown" for which in ("public", "private")]
    say(f"public score: {scores[0]}, private score: {scores[1]} ({page})")


def read_submissions(text: str) -> list[Row]:
    """Parse the table that `kaggle competitions submissions --csv` prints, the newest first.

    Raises:
        KaggleError: there is no table.
    """
    if "No submissions found" in text:
        return []
    start = text.find("ref,fileName,")
    if start < 0:
        raise KaggleError("see the submissions", f"no table in {' '.join(text.split())[:200]!r}")
    rows = csv.DictReader(text[start:].splitlines())
    return [row for row in rows if row.get("status")]  # a line without it is a warning after the table


def _status(row: Row) -> str:
    """Return `pending` for `SubmissionStatus.PENDING`."""
    return row["status"].rpartition(".")[2].lower()
