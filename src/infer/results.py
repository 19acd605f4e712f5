"""submission.csv and report.csv, which can be written at any time from partial results, and checks."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.core.files import write_table
from src.core.targets import COLUMNS
from src.data.labels import read_table
from src.score.metric import obeys_rules
from src.score.postprocess import PatientRows, PostProcessing
from src.score.prior import constant
from src.score.submission import validate_submission, write_submission

REPORT = ("patient_id", "series_id", "status", "reason")
"""Columns of the report: one row per series, and one without series_id for each patient that got the prior.

status: `ok`; `thinned`, predicted by a part of the ensemble because time was short; `doubtful`, predicted,
thinned or not, from images that may be wrong; `skipped`, could not be read or predicted; `not reached`, the
run ended before; `prior`. The reason of a predicted series contains its remarks.
"""

PREDICTED = ("ok", "thinned", "doubtful")
"""Status of the series that have a prediction."""


class Results:
    """Probabilities by series, which are joined to rows by patient.

    Args:
        series: patient and series ids of all series to predict.
        sample: sample_submission.csv, which defines the patients and their order.
        post: defines how series and runs are joined.
        prior: 13 probabilities of a patient without a predicted series.
        why_none: reason why a patient has no series, if known.
    """

    def __init__(
        self,
        series: Sequence[tuple[str, str]],
        sample: pd.DataFrame,
        post: PostProcessing,
        prior: pd.Series,
        why_none: Callable[[str], str] = lambda patient_id: "",
    ) -> None:
        self._series, self._sample, self._post, self._prior = series, sample, post, prior
        self._why_none = why_none
        self._probabilities: dict[tuple[str, str], np.ndarray] = {}  # (runs, 13) of each series
        self._statuses: dict[tuple[str, str], tuple[str, str]] = {}  # status and reason
        self._refused: list[str] = []  # patients whose joined row breaks a rule of the competition

    def add(
        self, key: tuple[str, str], probabilities: np.ndarray, status: str = "ok", reason: str = ""
    ) -> None:
        """Add the runs' probabilities of a series, (runs, 13); NaN in columns that a run never predicts."""
        self._probabilities[key], self._statuses[key] = probabilities, (status, reason)

    def skip(self, key: tuple[str, str], reason: str) -> None:
        """Record that a series has no prediction."""
        self._statuses[key] = ("skipped", reason)

    def save(self, output: Path) -> None:
        """Write the submission and, beside it, report.csv. Other threads may add series meanwhile.

        Raises:
            UserError: the files cannot be written.
        """
        try:
            write_submission(self.predictions(), self._sample, output)
            write_table(self.report(), output.parent / "report.csv")
        except OSError as error:
            raise UserError(f"cannot write {output}: {error.strerror}") from None

    def predictions(self) -> pd.DataFrame:
        """`patient_id` and the 13 probabilities, one row per patient: a prediction, or the prior if there is
        none or if it breaks a rule of the competition."""
        known = self._probabilities.copy()
        predicted = [(key[0], known[key]) for key in self._series if key in known]
        seen = pd.Series([patient for patient, _ in predicted], dtype=str)
        parts = []
        if predicted:
            tables = [
                pd.DataFrame([values[run] for _, values in predicted], columns=list(COLUMNS)).assign(
                    patient_id=seen
                )
                for run in range(len(self._post.weights))
            ]
            rows = PatientRows.read(tables, seen.drop_duplicates()).apply(self._post)
            # one invalid row makes the competition reject the whole submission
            is_refused = ~obeys_rules(rows)
            rows.loc[is_refused, list(COLUMNS)] = self._prior[list(COLUMNS)].to_numpy()
            self._refused = rows.patient_id[is_refused].tolist()
            parts.append(rows)
        without = self._patients_without(seen)
        if without:
            parts.append(constant(self._prior, pd.Series(without, dtype=str)))
        return pd.concat(parts, ignore_index=True)

    def report(self) -> pd.DataFrame:
        """Return one row per series, and per patient that got the prior in `predictions`, see `REPORT`."""
        known = self._statuses.copy()
        rows = [(*key, *known.get(key, ("not reached", ""))) for key in self._series]
        statuses: dict[str, set[str]] = {}
        for patient, _, status, _ in rows:
            statuses.setdefault(patient, set()).add(status)
        for patient in self._patients_without(row[0] for row in rows if row[2] in PREDICTED):
            if patient in statuses:
                reason = (
                    "not reached"
                    if "not reached" in statuses[patient]
                    else "no series could be read or predicted"
                )
            else:
                reason = "; ".join(part for part in ("no series found", self._why_none(patient)) if part)
            rows.append((patient, "", "prior", reason))
        rows += [
            (patient, "", "prior", "the prediction breaks a rule of the competition")
            for patient in self._refused
        ]
        place = {patient: number for number, patient in enumerate(self._sample.patient_id)}
        rows.sort(key=lambda row: (place[row[0]], row[1] == "", row[1]))
        return pd.DataFrame(rows, columns=list(REPORT))

    def _patients_without(self, patient_ids: Iterable[str]) -> list[str]:
        predicted = set(patient_ids)
        return [patient for patient in self._sample.patient_id if patient not in predicted]


def describe_error(error: BaseException) -> str:
    """Format an error as one line of the report."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return (kind + " ".join(str(error).split()))[:300]


def read_sample(path: str | Path) -> pd.DataFrame:
    """Read sample_submission.csv with `patient_id` as text.

    Raises:
        UserError: not such a table, no patient, or a duplicate patient.
    """
    sample = read_table(path, ("patient_id", *COLUMNS))
    twice = sample.patient_id.duplicated()
    if twice.any():
        raise UserError(f"{path} names patient {sample.patient_id[twice].iloc[0]} twice")
    return sample


def check_submission(path: str | Path, sample: str | Path) -> int:
    """Check a submission as the competition would: columns, patients, their order, and every value.

    Args:
        sample: sample_submission.csv.

    Returns:
        The number of patients.

    Raises:
        UserError: the first problem found.
    """
    wanted = read_sample(sample)
    frame = read_table(path, ("patient_id",))
    try:
        validate_submission(frame, wanted)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return len(frame)
