"""Every patient of the sample gets a row; the next series is read while the models look at this one."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pandas as pd

from src.cls.dataset import StackBatch
from src.core.errors import UserError
from src.core.log import progress
from src.core.targets import COLUMNS
from src.infer.ensemble import Ensemble, StackKind
from src.infer.sources import StackSource
from src.score.submission import combine_series


@dataclass(frozen=True)
class SeriesRead:
    """One series as read: its stacks, or the reason why there are none."""

    patient_id: str
    series_id: str
    stacks: dict[StackKind, StackBatch] | None
    reason: str = ""


def predict_patients(
    source: StackSource, ensemble: Ensemble, patient_ids: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict the patients, both series of a patient combined.

    A series that cannot be read is left out; a patient without a readable one gets the ensemble's prior.

    Returns:
        `patient_id` and the 13 probabilities, a row a patient; and the report: `patient_id, series_id,
        status, reason`, a row a series and a row for each patient that got the prior.

    Raises:
        UserError: the source cannot feed these models, or has no series of any patient.
    """
    for kind in ensemble.stack_kinds:
        source.check(kind)
    rows, report = [], []
    wanted = [(patient, series) for patient in patient_ids for series in source.series_of(patient)]
    if not wanted:
        raise UserError(f"no series of any of the {len(patient_ids)} patients is in the input")
    for read in progress(read_ahead(source, wanted, ensemble.stack_kinds), len(wanted), "series"):
        if read.stacks is not None:
            values = ensemble.predict(read.stacks)
            rows.append({"patient_id": read.patient_id, **dict(zip(COLUMNS, values, strict=True))})
        status = "ok" if read.stacks is not None else "skipped"
        report.append((read.patient_id, read.series_id, status, read.reason))
    with_series, seen = {patient for patient, _ in wanted}, {row["patient_id"] for row in rows}
    for patient in patient_ids:
        if patient not in seen:
            rows.append({"patient_id": patient, **ensemble.prior})
            reason = "no series could be read" if patient in with_series else "no series found"
            report.append((patient, "", "prior", reason))
    predictions = combine_series(pd.DataFrame(rows, columns=["patient_id", *COLUMNS]))
    return predictions, pd.DataFrame(report, columns=["patient_id", "series_id", "status", "reason"])


def read_ahead(
    source: StackSource, wanted: list[tuple[str, str]], kinds: list[StackKind]
) -> Iterator[SeriesRead]:
    """Read series in a thread of their own, one ahead of the one that is yielded."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = None
        for patient_id, series_id in wanted:
            following = pool.submit(_read, source, patient_id, series_id, kinds)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _read(source: StackSource, patient_id: str, series_id: str, kinds: list[StackKind]) -> SeriesRead:
    try:
        stacks = {kind: source.read(patient_id, series_id, kind) for kind in kinds}
    # One series must not end a submission: whatever it is, the report tells it.
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return SeriesRead(patient_id, series_id, None, kind + " ".join(str(error).split()))
    return SeriesRead(patient_id, series_id, stacks)
