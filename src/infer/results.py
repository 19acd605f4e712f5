"""What is known of every patient so far: a whole submission at any time, and how it came about."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from src.core.targets import COLUMNS
from src.score.metric import obeys_rules
from src.score.postprocess import PatientRows, PostProcessing
from src.score.prior import constant

REPORT = ("patient_id", "series_id", "status", "reason")
"""Columns of the report: a row a series, and one without series_id for each patient that got the prior.

status: `ok`; `thinned`, by a part of the ensemble, since time was short; `skipped`, could not be read or
predicted; `not reached`, the run ended before; `prior`.
"""


class Results:
    """Probabilities by series, which become rows by patient.

    Args:
        series: patient and series ids of all that will be looked at.
        patient_ids: who gets a row, in this order.
        post: how series and runs are joined.
        prior: 13 probabilities of a patient of whom nothing could be looked at.
        why_none: what is known of a patient without series.
    """

    def __init__(
        self,
        series: Sequence[tuple[str, str]],
        patient_ids: Sequence[str],
        post: PostProcessing,
        prior: pd.Series,
        why_none: Callable[[str], str] = lambda patient_id: "",
    ) -> None:
        self._series, self._patient_ids, self._post, self._prior = series, patient_ids, post, prior
        self._why_none = why_none
        self._answers: dict[tuple[str, str], np.ndarray] = {}  # (runs, 13) of each series
        self._told: dict[tuple[str, str], tuple[str, str]] = {}  # status and reason

    def add(
        self, key: tuple[str, str], probabilities: np.ndarray, status: str = "ok", reason: str = ""
    ) -> None:
        """Take in what the runs say of a series, (runs, 13); NaN in what a run never tells."""
        self._answers[key], self._told[key] = probabilities, (status, reason)

    def skip(self, key: tuple[str, str], reason: str) -> None:
        """Note that a series has no prediction."""
        self._told[key] = ("skipped", reason)

    def predictions(self) -> pd.DataFrame:
        """`patient_id` and the 13 probabilities, a row a patient; who has no prediction gets the prior.

        Another thread may add series meanwhile.
        """
        known = self._answers.copy()
        answers = [(key[0], known[key]) for key in self._series if key in known]
        seen = pd.Series([patient for patient, _ in answers], dtype=str)
        parts = []
        if answers:
            tables = [
                pd.DataFrame([values[run] for _, values in answers], columns=list(COLUMNS)).assign(
                    patient_id=seen
                )
                for run in range(len(self._post.weights))
            ]
            rows = PatientRows.read(tables, seen.drop_duplicates()).apply(self._post)
            # what the competition refuses in one row, it refuses in all
            rows.loc[~obeys_rules(rows), list(COLUMNS)] = self._prior[list(COLUMNS)].to_numpy()
            parts.append(rows)
        without = self._all_but(seen)
        if without:
            parts.append(constant(self._prior, pd.Series(without, dtype=str)))
        return pd.concat(parts, ignore_index=True)

    def report(self) -> pd.DataFrame:
        """A row a series and for each patient that got the prior, patient by patient, see `REPORT`.

        Another thread may add series meanwhile.
        """
        told = self._told.copy()
        rows = [(*key, *told.get(key, ("not reached", ""))) for key in self._series]
        reasons: dict[str, set[str]] = {}
        for patient, _, status, _ in rows:
            reasons.setdefault(patient, set()).add(status)
        for patient in self._all_but(row[0] for row in rows if row[2] in ("ok", "thinned")):
            if patient in reasons:
                reason = "not reached" if "not reached" in reasons[patient] else "no series could be read"
            else:
                reason = "; ".join(part for part in ("no series found", self._why_none(patient)) if part)
            rows.append((patient, "", "prior", reason))
        place = {patient: number for number, patient in enumerate(self._patient_ids)}
        rows.sort(key=lambda row: (place[row[0]], row[1] == "", row[1]))
        return pd.DataFrame(rows, columns=list(REPORT))

    def _all_but(self, patient_ids: Iterable[str]) -> list[str]:
        predicted = set(patient_ids)
        return [patient for patient in self._patient_ids if patient not in predicted]
