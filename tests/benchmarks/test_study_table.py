"""The arithmetic of the studies' tables over seeds."""

import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from study_table import difference_rows, format_spread, mean_rows

FIGURES = {"dice": "Dice"}


def runs(**values: list[float]) -> pd.DataFrame:
    """One row for each value of a method, with its place as the seed."""
    rows = [
        {"method": method, "share": 0.1, "seed": seed, "dice": value, "seconds": 10.0 * seed or None}
        for method, each in values.items()
        for seed, value in enumerate(each)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("values", "shown"),
    [([1.0, 2.0, 4.5], "2.500 ± 1.803"), ([0.25, None], "0.250"), ([None, None], "-")],
)
def test_format_spread_of_known_values(values, shown):
    assert format_spread(pd.Series(values)) == shown


def test_mean_rows_over_seeds():
    table = runs(supervised=[0.5, 0.7, 0.6], dual=[0.6])
    first, second = mean_rows(table, ("share", "method"), FIGURES, ("seconds",))
    assert first == {
        **{"share": 0.1, "method": "supervised", "seeds": 3},
        **{"Dice": "0.600 ± 0.100", "seconds": "15"},  # of the two that are known
    }
    assert (second["seeds"], second["Dice"], second["seconds"]) == (1, "0.600", "-")


def test_difference_rows_pair_by_seed():
    table = runs(supervised=[0.5, 0.7, 0.6, 0.9], dual=[0.6, 0.72, 0.58])
    table = pd.concat([table, table.assign(share=0.2, dice=0.0)])
    pairs = [("dual", "supervised"), ("dual", "missing")]
    rows = difference_rows(table, pairs, FIGURES, what="method", within="share", ahead={"dice": 1})
    assert [(row["share"], row["Dice"], row["Dice: ahead"]) for row in rows] == [
        (0.1, "+0.033 ± 0.061", "2 of 3"),
        (0.2, "+0.000 ± 0.000", "0 of 3"),
    ]
    (lower, _) = difference_rows(table, pairs, FIGURES, what="method", within="share", ahead={"dice": -1})
    assert lower["Dice: ahead"] == "1 of 3"
