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
from src.score.postprocess import PatientRows, PostProcessing
from src.score.prior import constant


@dataclass(frozen=True)
class SeriesRead:
    """One series as read: its stacks, or the reason why there are none."""

    patient_id: str
    series_id: str
    stacks: dict[StackKind, StackBatch] | None
    reason: str = ""


def predict_patients(
    source: StackSource,
    ensemble: Ensemble,
    patient_ids: Sequence[str],
    post: PostProcessing | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict the patients, series and runs combined as `post` says, or plainly averaged.

    A series that cannot be read is left out; a patient without a readable one gets the ensemble's prior, as
    it is.

    Returns:
        `patient_id` and the 13 probabilities, a row a patient; and the report: `patient_id, series_id,
        status, reason`, a row a series and a row for each patient that got the prior.

    Raises:
        UserError: the source cannot feed these models, or has no series of any patient; `post` was fitted on
            another number of runs.
    """
    post = post or PostProcessing.identity(len(ensemble.runs))
    post.require_tables(len(ensemble.runs))
    for kind in ensemble.stack_kinds:
        source.check(kind)
    rows, report = [], []
    wanted = [(patient, series) for patient in patient_ids for series in source.series_of(patient)]
    if not wanted:
        raise UserError(f"no series of any of the {len(patient_ids)} patients is in the input")
    for read in progress(read_ahead(source, wanted, ensemble.stack_kinds), len(wanted), "series"):
        if read.stacks is not None:
            rows.append((read.patient_id, ensemble.predict(read.stacks)))
        status = "ok" if read.stacks is not None else "skipped"
        report.append((read.patient_id, read.series_id, status, read.reason))
    seen = pd.Series([patient for patient, _ in rows], dtype=str)
    tables = [
        pd.DataFrame([answers[run] for _, answers in rows], columns=list(COLUMNS)).assign(patient_id=seen)
        for run in range(len(ensemble.runs))
    ]
    parts = [PatientRows.read(tables, seen.drop_duplicates()).apply(post)] if rows else []
    with_series, known = {patient for patient, _ in wanted}, set(seen)
    without = pd.Series([patient for patient in patient_ids if patient not in known], dtype=str)
    if len(without):
        parts.append(constant(ensemble.prior, without))
    for patient in without:
        reason = "no series could be read" if patient in with_series else "no series found"
        report.append((patient, "", "prior", reason))
    predictions = pd.concat(parts, ignore_index=True)
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
