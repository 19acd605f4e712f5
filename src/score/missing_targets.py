"""Targets that a table of predictions does not tell: their columns are empty in all of its rows.

A run of few targets leaves such a table. Where tables are joined, each target is the answer of those that
tell it, by their weights among themselves; a target that none tells gets the prior of the other folds.
"""

from collections.abc import Iterable, Mapping

import pandas as pd

from src.core.errors import UserError
from src.core.targets import GROUPS
from src.score.metric import check_probabilities
from src.score.prior import cross_fitted_prior, weight_aware_prior


def untold_targets(table: pd.DataFrame) -> tuple[str, ...]:
    """The targets whose columns are all there and empty in every row."""
    empty = {column for column in table.columns if table[column].isna().all()}
    return tuple(target for target, members in GROUPS.items() if empty >= set(members))


def check_told(table: pd.DataFrame) -> None:
    """Apply the competition's rules to the targets that a table tells.

    Raises:
        UserError: as `metric.check_probabilities`; so too for a target that is empty in some rows only.
    """
    check_probabilities(table.assign(**dict.fromkeys(_columns(untold_targets(table)), 1.0)))


def fill_targets(
    table: pd.DataFrame, targets: Iterable[str], labels: pd.DataFrame, folds: pd.DataFrame | None
) -> pd.DataFrame:
    """Give every row of a table the weight-aware prior of the other folds in some targets.

    Args:
        table: `patient_id` and the 13 columns, a row a series or a patient.
        targets: whose columns are filled.
        labels: of every patient; those without a row in `folds` serve the priors only.
        folds: `patient_id, fold` of all patients of the table's folds; None where they are not known.

    Raises:
        UserError: there are targets to fill but no folds, or a fold is all that is labelled.
    """
    columns = _columns(targets)
    if not columns:
        return table
    if folds is None:
        names = ", ".join(targets)
        raise UserError(f"no prior can stand in for {names}, which is not told, without folds: give --folds")
    prior = cross_fitted_prior(labels, folds, weight_aware_prior).set_index("patient_id")
    return table.assign(**{name: prior[name].loc[table.patient_id].to_numpy() for name in columns})


def fill_untold(table: pd.DataFrame, labels: pd.DataFrame, folds: pd.DataFrame | None) -> pd.DataFrame:
    """`fill_targets` of those that the table does not tell, so that it can be scored alone."""
    return fill_targets(table, untold_targets(table), labels, folds)


def explain_untold(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """A line for each table that leaves targets out, where others are there, and one for what none tells."""
    untold = {name: untold_targets(table) for name, table in tables.items()}
    by_none = [target for target in GROUPS if all(target in targets for targets in untold.values())]
    lines = [
        f"{name} does not tell {', '.join(targets)}: it takes no part there, and alone it gets the prior"
        for name, targets in untold.items()
        if targets and len(tables) > 1
    ]
    if by_none:
        lines.append(f"no table tells {', '.join(by_none)}: the prior of the other folds stands in")
    return lines


def _columns(targets: Iterable[str]) -> list[str]:
    return [column for target in targets for column in GROUPS[target]]
