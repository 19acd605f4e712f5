"""The arithmetic of the transfer study's tables."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import study_table
from study_sets import SCRATCH, Start


def run(value: float) -> dict:
    """A run all of whose figures are `value`."""
    return {"patients": 20, **dict.fromkeys(study_table.FIGURES, value)}


V2, SMALL, LARGE = Start("v2", 8), Start("plus", 4), Start("plus", 8)


def test_compare_pairs_by_seed_and_share():
    runs = {(SCRATCH, 1.0, seed): run(value) for seed, value in enumerate((0.5, 0.7, 0.9, 1.1))}
    runs |= {(V2, 1.0, seed): run(value) for seed, value in ((0, 0.4), (2, 1.0), (3, 0.8))}
    runs[V2, 0.1, 1] = run(9.0)
    (row,) = study_table.compare(runs, [(V2, SCRATCH)])
    assert (row["start"], row["minus"], row["labels"], row["seeds"]) == ("v2-8", "scratch", 1.0, [0, 2, 3])
    assert row["score"] == pytest.approx({"mean": -0.1, "sd": 0.2, "min": -0.3, "max": 0.1})
    assert row["better"] == 2  # a lower score is better


def test_summarise_over_seeds():
    runs = {(V2, 1.0, seed): run(value) for seed, value in enumerate((1.0, 2.0, 4.5))}
    runs[V2, 1.0, 0]["classifier_seconds"] = 10.0
    runs[V2, 1.0, 1]["classifier_seconds"] = None  # interrupted
    (row,) = study_table.summarise(runs)
    assert row["map"] == pytest.approx({"mean": 2.5, "sd": 3.25**0.5, "min": 1.0, "max": 4.5})
    assert row["classifier_seconds"] == 10.0 and row["seeds"] == [0, 1, 2]


def test_comparisons_of_encoders():
    pairs = study_table.comparisons([SCRATCH, V2, SMALL, LARGE])
    assert {other for start, other in pairs if start == LARGE} == {SCRATCH, V2, SMALL}
    assert {other for start, other in pairs if start == V2} == {SCRATCH}
    assert {other for start, other in pairs if start == SCRATCH} == {study_table.PRIOR}
