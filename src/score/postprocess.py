"""Post-processing of predictions: series and tables are joined, probabilities adjusted.

Steps for every patient, in order: each table's series become one row (`series_max`), the tables' rows become
one (`weights`, per target among the tables that predict it); every target is sharpened or softened
(`temperature`), its injuries are multiplied (`multipliers`), and the most injured target is raised towards
the probability of any injury over all targets (`any_injury`). `src.score.postfit` fits the parameters;
`infer.py --post` reads them from a JSON file.

Arrays store the 13 columns as (..., targets, classes), healthy first, for arithmetic over all targets at
once; the third class of targets with two classes is 0.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.core.errors import UserError
from src.core.files import write_json
from src.core.targets import COLUMNS, INJURIES, TARGETS
from src.score.metric import align
from src.score.missing_targets import check_predicted_targets

N_CLASSES = max(map(len, TARGETS.values()))
_places = [
    (target, grade) for target, columns in enumerate(TARGETS.values()) for grade in range(len(columns))
]
_ALL = tuple(np.array(_places).T)
GRADES = tuple(np.array([place for place in _places if place[1]]).T)
"""Index of the 8 injuries in (targets, classes), in the order of `INJURIES`."""

_FORMAT = 1
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class PostProcessing:
    """Parameters of the adjustment; the defaults only join series and tables."""

    weights: tuple[float, ...]
    """weight of each table (model, run) in the ensemble; they sum to 1"""
    series_max: float = 0.0
    """weight of the most injured series in a patient's row, 0..1; the rest is the mean of the series. 0 is
    the plain mean, 1 takes each target from the series with the lowest `healthy`"""
    temperature: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(TARGETS, 1.0))
    """temperature of each target: probabilities are raised to 1 / temperature; below 1 sharpens"""
    multipliers: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(INJURIES, 1.0))
    """multipliers of the 8 injury columns; a target is divided by its sum afterwards"""
    any_injury: float = 0.0
    """0..1: how far the largest injury of a target is moved towards 1 - the product of all `healthy`, the
    probability of any injury if the targets were independent. The ratio of low to high is kept"""
    tables: tuple[str, ...] = ()
    """paths of the out-of-fold tables of the weights; empty if unknown"""

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights) < 0 or not np.isclose(sum(self.weights), 1):
            raise UserError(f"post-processing: weights must be at least 0 and sum to 1, got {self.weights}")
        for name in ("series_max", "any_injury"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"post-processing: {name} must be in 0..1, got {getattr(self, name)}")
        for name, keys in (("temperature", tuple(TARGETS)), ("multipliers", INJURIES)):
            values = getattr(self, name)
            if set(values) != set(keys) or not all(np.isfinite(v) and v > 0 for v in values.values()):
                raise UserError(f"post-processing: {name} must give a number above 0 to {', '.join(keys)}")
        if self.tables and len(self.tables) != len(self.weights):
            raise UserError(
                f"post-processing: {len(self.weights)} weights for the {len(self.tables)} tables "
                f"{', '.join(self.tables)}: give each its own"
            )

    def require_tables(self, count: int) -> None:
        """Raise UserError if the weights belong to another number of tables or runs."""
        if len(self.weights) != count:
            raise UserError(
                f"the post-processing was fitted on {len(self.weights)} tables or runs, there are {count}: "
                "give the same ones in the same order"
            )

    def require_runs(self, runs: Sequence[Path]) -> None:
        """Check that the weights belong to these run folders, in this order.

        The folders are compared with those of the tables by their last names. If the names differ, for
        example after a move, the order is assumed to be right.

        Raises:
            UserError: another number of runs, or the same ones in another order.
        """
        self.require_tables(len(runs))
        given = [os.path.basename(os.path.abspath(run)) for run in runs]
        wanted = [Path(table).parent.name for table in self.tables]
        if given == wanted or sorted(given) != sorted(wanted):
            return
        left = list(zip(given, runs, strict=True))
        ordered = [left.pop([name for name, _ in left].index(name))[1] for name in wanted]
        raise UserError(
            "the runs are in another order than the tables that the post-processing was fitted on: "
            f"give --models {' '.join(map(str, ordered))}"
        )

    @classmethod
    def identity(cls, tables: int) -> "PostProcessing":
        """Return the plain mean of series and tables."""
        return cls((1.0 / tables,) * tables)


@dataclass(frozen=True)
class PatientRows:
    """Predictions of the tables, one row per patient, with series joined in two ways.

    Both arrays have shape (tables, patients, targets, classes). A target that a table lacks is NaN for all
    patients.
    """

    patient_ids: pd.Series
    mean: np.ndarray
    """mean of the patient's series"""
    most_injured: np.ndarray
    """each target from the series with its lowest share of `healthy`"""

    @classmethod
    def read(cls, tables: Sequence[pd.DataFrame], patient_ids: pd.Series) -> "PatientRows":
        """Join the series of every table.

        Args:
            tables: `patient_id` and the 13 columns, one row per series or per patient; a target that a table
                lacks is empty in all of its rows.
            patient_ids: patients that each table must contain, and no others.
        """
        means, most_injured = [], []
        for table in tables:
            check_predicted_targets(table)
            by_patient = table.groupby("patient_id", sort=False)
            mean = align(by_patient[list(COLUMNS)].mean().reset_index(), patient_ids)
            means.append(to_targets(mean))
            most_injured.append(_most_injured(table, patient_ids))
        return cls(patient_ids.reset_index(drop=True), np.stack(means), np.stack(most_injured))

    @property
    def predicted(self) -> np.ndarray:
        """Targets that each table predicts, bool (tables, targets)."""
        return ~np.isnan(self.mean).any(axis=(1, 3))

    def select(self, rows: np.ndarray) -> "PatientRows":
        """Select patients by indices or by a mask."""
        return PatientRows(
            self.patient_ids[rows].reset_index(drop=True), self.mean[:, rows], self.most_injured[:, rows]
        )

    def apply(self, post: PostProcessing) -> pd.DataFrame:
        """Return `patient_id` and the 13 columns, adjusted.

        Raises:
            UserError: `post` has weights for another number of tables, or no table with a positive weight
                predicts a target.
        """
        post.require_tables(len(self.mean))
        weights = np.array(post.weights)[:, None] * self.predicted  # (tables, targets)
        together = weights.sum(axis=0)
        if not together.all():
            target = list(TARGETS)[int(np.argmin(together))]
            raise UserError(f"post-processing: no table of a weight above 0 predicts {target}")
        rows = (1 - post.series_max) * self.mean + post.series_max * self.most_injured
        rows = np.where(self.predicted[:, None, :, None], rows, 0.0)
        joined = ((weights / together)[:, None, :, None] * rows).sum(axis=0)
        temperature = np.array([post.temperature[name] for name in TARGETS])
        multipliers = from_vector(np.array([post.multipliers[name] for name in INJURIES]), others=1.0)
        adjusted = adjust(joined, temperature, multipliers, post.any_injury)
        return from_targets(adjusted).assign(patient_id=self.patient_ids)


def adjust(
    probabilities: np.ndarray, temperature: np.ndarray, multipliers: np.ndarray, any_injury: float
) -> np.ndarray:
    """Apply temperature, multipliers and the coupling of any injury.

    Args:
        probabilities: (patients, targets, classes), not necessarily normalised.
        temperature: (targets,).
        multipliers: (targets, classes).
        any_injury: 0..1.

    Returns:
        The same shape; every target sums to 1.
    """
    # relative to the largest class, so that a low temperature cannot make all classes of a target 0
    shares = probabilities / probabilities.max(axis=-1, keepdims=True)
    shares = shares ** (1 / temperature)[:, None] * multipliers
    shares = shares / shares.sum(axis=-1, keepdims=True)
    if any_injury == 0:
        return shares
    patients = np.arange(len(shares))
    injury = shares[..., 1:].sum(axis=-1)  # (patients, targets)
    most = injury.argmax(axis=1)
    largest = injury[patients, most]
    together = 1 - shares[..., 0].prod(axis=1)
    raised = (1 - any_injury) * largest + any_injury * np.maximum(together, largest)
    scale = raised / np.maximum(largest, _TINY)
    shares[patients, most, 1:] *= scale[:, None]
    shares[patients, most, 0] = np.maximum(1 - raised, 0)
    return shares


def post_of_runs(runs: Sequence[Path], weights: Sequence[float] | None, path: Path | None) -> PostProcessing:
    """Return how predictions of runs are joined and adjusted: as in the file `path`, or by a weighted mean.

    Args:
        weights: one per run, equal by default; not used with a file.

    Raises:
        UserError: the file cannot be read, or belongs to other runs or the same ones in another order.
    """
    if path is not None:
        post = read_post(path)
        post.require_runs(runs)
        return post
    weights = weights or (1.0,) * len(runs)
    return PostProcessing(tuple(weight / sum(weights) for weight in weights))


def write_post(post: PostProcessing, path: str | Path, tables: Sequence[str], **about: Any) -> None:
    """Write the JSON file that `infer.py --post` reads, atomically by a rename.

    Args:
        tables: paths of the tables of the weights, see `PostProcessing.require_runs`.
        about: metadata of the fit, as plain values.
    """
    values = asdict(replace(post, tables=tuple(tables)))
    write_json({"format": _FORMAT, "tables": list(tables), **values, "about": about}, path)


def read_post(path: str | Path) -> PostProcessing:
    """Read a file that `write_post` wrote.

    Raises:
        UserError: no such file, or an invalid one; the message contains the problem.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the post-processing {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    names = ("weights", "series_max", "temperature", "multipliers", "any_injury")
    missing = [name for name in names if not isinstance(values, dict) or name not in values]
    if missing or values.get("format") != _FORMAT:
        what = f"lacks {missing[0]}" if missing else f"has format {values.get('format')}, not {_FORMAT}"
        raise UserError(f"{path} {what}: write it with score.py --fit")
    numbers = {name: values[name] for name in names[1:]}
    try:
        tables = tuple(str(table) for table in values.get("tables", ()))
        return PostProcessing(tuple(values["weights"]), tables=tables, **numbers)
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path} holds values of another kind: {error}") from None


def to_targets(frame: pd.DataFrame) -> np.ndarray:
    """Convert the 13 columns to (rows, targets, classes)."""
    values = np.zeros((len(frame), len(TARGETS), N_CLASSES))
    values[:, *_ALL] = frame[list(COLUMNS)].to_numpy(np.float64)
    return values


def from_targets(values: np.ndarray) -> pd.DataFrame:
    """The inverse of `to_targets`."""
    return pd.DataFrame(values[:, *_ALL], columns=list(COLUMNS))


def from_vector(values: np.ndarray, others: float = 0.0) -> np.ndarray:
    """Return (targets, classes) with a value for each of `INJURIES`, and `others` elsewhere."""
    array = np.full((len(TARGETS), N_CLASSES), others)
    array[GRADES] = values
    return array


def _most_injured(table: pd.DataFrame, patient_ids: pd.Series) -> np.ndarray:
    values = to_targets(table)  # (rows, targets, classes)
    healthy = values[..., 0] / values.sum(axis=-1)
    ids = table.patient_id.reset_index(drop=True)
    chosen = np.empty((len(patient_ids), *values.shape[1:]))
    for target in range(values.shape[1]):
        # stable: the first of equal rows
        order = np.argsort(healthy[:, target], kind="stable")
        first = ids.iloc[order].drop_duplicates()
        rows = pd.Series(first.index, index=first.to_numpy()).loc[patient_ids]
        chosen[:, target] = values[rows.to_numpy(), target]
    return chosen
