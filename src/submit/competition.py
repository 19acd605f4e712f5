"""Submit a notebook's output to the competition, and wait for the score."""

import csv
from collections.abc import Iterable

from src.core.errors import UserError
from src.core.log import say
from src.submit.kernel import read_kernel
from src.submit.options import COMPETITION, SubmitOptions
from src.submit.program import command_line, run_kaggle
from src.submit.waiting import wait_for

FILE = "submission.csv"
Row = dict[str, str]


def submit(options: SubmitOptions) -> None:
    """Submit, wait, and show the public and the private score.

    Raises:
        UserError: Kaggle could not score the submission.
        KaggleError: the kaggle program failed.
    """
    kernel_id, competition = options.id, options.competition or COMPETITION
    if options.kernel is not None:
        kernel = read_kernel(options.kernel)
        kernel_id, competition = kernel.id, options.competition or kernel.competition
    hand_in = [
        *("competitions", "submit", "-c", competition, "-f", FILE, "-k", kernel_id),
        *("-v", str(options.version), "-m", options.message),
    ]
    submissions = ["competitions", "submissions", "-c", competition, "--csv"]
    if options.dry_run:
        say(command_line(hand_in))
        say(f"{command_line(submissions)}  # until the status is complete")
        return

    def read() -> list[Row]:
        return read_submissions(run_kaggle(submissions, "see the submissions", competition=competition))

    before = {_key(row) for row in read()}
    told = run_kaggle(hand_in, f"submit version {options.version} of {kernel_id}", competition=competition)
    for line in told.strip().splitlines():
        say(line)
    found: Row = {}

    def look() -> str:
        # The list comes newest first; of those that are new, ours has our message.
        new = [row for row in read() if _key(row) not in before and row["description"] == options.message]
        found.update(new[0] if new else {})
        return _status(new[0]) if new else "not in the list yet"

    status = wait_for(
        "submission",
        look,
        lambda answer: answer in ("complete", "error"),
        poll_s=options.poll_seconds,
        limit_s=options.score_hours * 3600,
        later=command_line(submissions),
    )
    page = f"https://www.kaggle.com/competitions/{competition}/submissions"
    if status == "error":
        raise UserError(
            f"Kaggle could not score version {options.version} of {kernel_id}: {page} says why; there it ran "
            "on the hidden test images, which are many more than those that it ran on before"
        )
    scores = {name: found.get(f"{name}Score") or "not shown" for name in ("public", "private")}
    say(f"public score: {scores['public']}, private score: {scores['private']} ({page})")


def read_submissions(text: str) -> list[Row]:
    """The table that `kaggle competitions submissions --csv` prints; warnings may stand before it.

    Raises:
        UserError: there is no such table.
    """
    lines = text.splitlines()
    if any(line.strip().lower() == "no submissions found" for line in lines):
        return []
    wanted = {"description", "status"}
    starts = [number for number, line in enumerate(lines) if wanted <= set(line.split(","))]
    if not starts:
        said = " ".join(lines)[:200]
        raise UserError(f"the kaggle program's list of submissions is not understood: {said}")
    return list(_complete(csv.DictReader(lines[starts[0] :])))


def _complete(rows: Iterable[Row]) -> Iterable[Row]:
    """Without what is no row of the table, such as a warning after it."""
    return (row for row in rows if row.get("status") and row.get("description") is not None)


def _key(row: Row) -> tuple[str | None, ...]:
    """What tells submissions apart and does not change: the number, where the program tells it."""
    return row.get("ref"), row.get("date"), row.get("fileName")


def _status(row: Row) -> str:
    return row["status"].rpartition(".")[2].lower()
