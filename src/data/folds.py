"""Cross-validation folds by patient: written once, committed, checked whenever they are read.

python -m src.data.folds --labels train.csv --series train_series_meta.csv --output folds/rsna2023_5fold.csv
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from src.core.config import parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import write_table
from src.core.log import format_table, say
from src.core.targets import INJURIES
from src.data.labels import read_labels, read_series_meta, read_table


@dataclass(frozen=True)
class FoldOptions:
    """Options of `python -m src.data.folds`."""

    labels: Path
    """Patient labels in the format of train.csv."""

    series: Path
    """Series table in the format of train_series_meta.csv."""

    output: Path
    """Table of folds to write: patient_id, fold."""

    n_folds: int = 5
    """Number of folds."""

    seed: int = 42
    """Seed of the draws that break ties."""


def make_folds(
    labels: pd.DataFrame, series_counts: pd.Series, n_folds: int = 5, seed: int = 42
) -> pd.DataFrame:
    """Distribute patients over folds so that injury grades and numbers of series are balanced.

    Iterative stratification (Sechidis et al. 2011) over the 8 injury columns and one indicator for each
    number of series. any_injury is excluded: balancing it too would unbalance the grades (low-grade liver
    injuries would differ by a third). The result depends on the seed and the set of patients only, not on the
    order of the rows.

    Args:
        labels: `patient_id` and the label columns, one row per patient.
        series_counts: number of series, indexed by patient id.

    Returns:
        `patient_id, fold`, sorted by patient id (shorter ids first, so that numbers are in numeric order).

    Raises:
        UserError: fewer patients than folds, fewer than two folds, or tables with different patients.
    """
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold  # scikit-learn: slow, so not for readers

    if not 2 <= n_folds <= len(labels):
        raise UserError(
            f"{n_folds} folds of {len(labels)} patients: use between 2 and the number of patients"
        )
    _refuse_difference(set(labels.patient_id), set(series_counts.index))
    ordered = labels.sort_values("patient_id", key=_numeric_order)
    counts = series_counts.loc[ordered.patient_id].to_numpy()
    indicators = np.hstack(
        [ordered[list(INJURIES)].to_numpy() == 1, counts[:, None] == np.unique(counts)[None, :]]
    )
    splitter = MultilabelStratifiedKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    fold_of_row = np.empty(len(ordered), dtype=int)
    for fold, (_, held_out) in enumerate(splitter.split(ordered, indicators)):
        fold_of_row[held_out] = fold
    return pd.DataFrame({"patient_id": ordered.patient_id.to_numpy(), "fold": fold_of_row})


def read_folds(path: str | Path, patient_ids: Iterable[str]) -> pd.DataFrame:
    """Read folds and keep the rows of `patient_ids`.

    Returns:
        `patient_id` (str), `fold` (int), in the file's order.

    Raises:
        UserError: a patient in two rows, fold numbers other than 0, 1, ..., K - 1, or one of `patient_ids`
            without a fold.
    """
    frame = read_table(path, ("patient_id", "fold"))[["patient_id", "fold"]]
    repeated = frame.patient_id.duplicated()
    if repeated.any():
        patient = frame.patient_id[repeated].iloc[0]
        folds = frame.fold[frame.patient_id == patient].tolist()
        raise UserError(
            f"{path} has patient {patient} twice, in folds {folds}: a patient belongs to one fold"
        )
    numbers = sorted(set(frame.fold.tolist()))
    if numbers != list(range(len(numbers))) or not pd.api.types.is_integer_dtype(frame.fold):
        raise UserError(f"{path}: folds must be numbered 0, 1, ... without a gap, got {numbers}")
    wanted = set(patient_ids)
    absent = sorted(wanted - set(frame.patient_id), key=_length_first)
    if absent:
        raise UserError(
            f"{path} has no fold for {len(absent)} of {len(wanted)} patients, the first is {absent[0]}: "
            "make folds from the same labels (python -m src.data.folds)"
        )
    return frame[frame.patient_id.isin(wanted)].reset_index(drop=True)


def count_per_fold(labels: pd.DataFrame, series_counts: pd.Series, folds: pd.DataFrame) -> pd.DataFrame:
    """Count patients, patients with several series, and positives of every injury; one row per fold."""
    counted = labels.merge(folds, on="patient_id").assign(patients=1)
    counted["multi_series"] = (series_counts.loc[counted.patient_id].to_numpy() > 1).astype(int)
    columns = ["patients", "multi_series", *INJURIES, "any_injury"]
    return counted.groupby("fold")[columns].sum().reset_index()


def main(argv: list[str] | None = None) -> None:
    options = parse_options(FoldOptions, argv, prog="python -m src.data.folds", description=__doc__)
    labels = read_labels(options.labels)
    series_counts = read_series_meta(options.series).groupby("patient_id").size()
    folds = make_folds(labels, series_counts, options.n_folds, options.seed)
    write_table(folds, options.output)
    checksum = hashlib.sha256(options.output.read_bytes()).hexdigest()
    say(format_table(count_per_fold(labels, series_counts, folds)))
    say(f"{options.output}: {len(folds)} patients, sha256 {checksum}")


def _refuse_difference(labelled: set[str], scanned: set[str]) -> None:
    for absent, where in (
        (labelled - scanned, "labels but no series"),
        (scanned - labelled, "series but no labels"),
    ):
        if absent:
            first = min(absent, key=_length_first)
            raise UserError(f"{len(absent)} patients have {where}, the first is {first}: use matching tables")


def _length_first(patient_id: str) -> tuple[int, str]:
    return len(patient_id), patient_id


def _numeric_order(patient_ids: pd.Series) -> pd.Series:
    return patient_ids.map(_length_first)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
