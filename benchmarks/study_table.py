"""Tables over the seeds of a study: means with their spread, and differences paired by seed."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd


def format_spread(values: pd.Series, form: str = ".3f") -> str:
    """`mean ± standard deviation` of a sample; the mean of a single value alone, `-` of none."""
    known = values.dropna().astype(float)
    if known.empty:
        return "-"
    return f"{known.mean():{form}}" + (f" ± {known.std():.3f}" if len(known) > 1 else "")


def mean_rows(
    runs: pd.DataFrame, keys: Sequence[str], figures: Mapping[str, str], costs: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A row for each group of `keys`, in the order of `runs`.

    Args:
        runs: one row per run, with `seed`, figures and costs (missing values are skipped).
        figures: columns that are shown as `format_spread` does, and their titles.
        costs: columns of which the mean is shown.
    """
    rows = []
    for key, group in runs.groupby(list(keys), sort=False):
        row = {**dict(zip(keys, key, strict=True)), "seeds": len(group)}
        row |= {title: format_spread(group[name]) for name, title in figures.items()}
        means = {name: group[name].astype(float).mean() for name in costs}
        rows.append(row | {name: "-" if pd.isna(mean) else f"{mean:.0f}" for name, mean in means.items()})
    return rows


def difference_rows(
    runs: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    figures: Mapping[str, str],
    *,
    what: str,
    within: str,
    ahead: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Differences of the first to the second of each pair, seed by seed.

    Args:
        pairs: values of the column `what`.
        within: column whose values are kept apart.
        ahead: figures of which the seeds that are ahead are counted; 1 where higher is better, else -1.
    """
    rows = []
    for (name, base), (place, group) in product(pairs, runs.groupby(within, sort=False)):
        first, second = (group[group[what] == each].set_index("seed") for each in (name, base))
        seeds = first.index.intersection(second.index)
        if seeds.empty:
            continue
        gaps = first.loc[seeds, list(figures)] - second.loc[seeds, list(figures)]
        row = {within: place, what: name, "minus": base}
        for figure, title in figures.items():
            row[title] = format_spread(gaps[figure], "+.3f")
            if figure in ahead:
                row[f"{title}: ahead"] = f"{(ahead[figure] * gaps[figure] > 0).sum()} of {len(seeds)}"
        rows.append(row)
    return rows
