"""Targets that a table of predictions lacks: their columns are empty in all rows.

A run that predicts only some targets writes such a table. When tables are joined, each target comes from the
tables that predict it, by their relative weights; a target that no table predicts gets the other folds'
prior.
"""

from collections.abc import Iterable, Mapping

import pandas as pd

from src.core.errors import UserError
from src.core.targets import TARGETS
from src.score.metric import check_probabilities
from src.score.prior import cross_fitted_prior, weight_aware_prior


def missing_targets(table: pd.DataFrame) -> tuple[str, ...]:
    """Return the targets whose columns all exist and are empty in every row."""
    empty = {column for column in table.columns if table[column].isna().all()}
    return tuple(target for target, columns in TARGETS.items() if empty >= set(columns))


def check_predicted_targets(table: pd.DataFrame) -> None:
    """Apply the competition's rules to the targets that a table predicts.

    Raises:
        UserError: as in `metric.check_probabilities`; also for a target that is empty in some rows only.
    """
    check_probabilities(table.assign(**dict.fromkeys(_columns(missing_targets(table)), 1.0)))


def fill_targets(
    table: pd.DataFrame, targets: Iterable[str], labels: pd.DataFrame, folds: pd.DataFrame | None
) -> pd.DataFrame:
    """Fill some targets of every row with the weight-aware prior of the other folds.

    Args:
        table: `patient_id` and the 13 columns, one row per series or per patient.
        targets: targets whose columns are filled.
        labels: labels of every patient; patients without a row in `folds` are used for the priors only.
        folds: `patient_id, fold` of all patients of the table's folds; None if unknown.

    Raises:
        UserError: there are targets to fill but no folds, or all labelled patients are in one fold.
    """
    columns = _columns(targets)
    if not columns:
        return table
    if folds is None:
        raise UserError(
            f"no table predicts {', '.join(targets)}, and a prior in their place needs folds: give --folds"
        )
    prior = cross_fitted_prior(labels, folds, weight_aware_prior).set_index("patient_id")
    return table.assign(**{name: prior[name].loc[table.patient_id].to_numpy() for name in columns})


def explain_missing(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return one line for each of several tables that lacks targets, and one for targets that all lack."""
    missing = {name: missing_targets(table) for name, table in tables.items()}
    by_all = [target for target in TARGETS if all(target in targets for targets in missing.values())]
    lines = [
        f"{name} has no {', '.join(targets)}: they come from the other tables, and alone it gets the prior"
        for name, targets in missing.items()
        if targets and len(tables) > 1
    ]
    if by_all:
        lines.append(f"no table has {', '.join(by_all)}: the prior of the other folds takes their place")
    return lines


def _columns(targets: Iterable[str]) -> list[str]:
    return [column for target in targets for column in TARGETS[target]]
