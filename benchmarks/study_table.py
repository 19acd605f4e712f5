"""What came of the transfer study: figures of every run, means and spread, paired differences, as tables."""

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean, stdev
from typing import Any

import pandas as pd
from study import Piece
from study_sets import SCRATCH, Start

from src.core.targets import COLUMNS
from src.data.labels import read_labels, read_probabilities
from src.score.classes import class_means, class_metrics
from src.score.metric import score
from src.score.prior import constant, weight_aware_prior

FIGURES = ("score", "map", "precision", "recall", "injury_map", "injury_precision", "injury_recall")
"""Of a run: means over 13 classes, or over the 8 injuries. Lower is better for the score, else higher."""
COSTS = ("encoder_seconds", "encoder_steps", "classifier_seconds", "classifier_steps")
PRIOR = Start("prior")
_SHOWN = {
    "score": "score (lower)",
    "map": "mAP",
    "precision": "precision",
    "recall": "recall",
    "injury_map": "mAP of injuries",
}

Cell = tuple[Start, float, int]
"""A start, a share of the labels and a seed."""
Run = dict[str, Any]
"""Figures and costs of a cell."""


def measure(piece: Piece, cell: Cell, pretraining: Piece | None) -> dict[Cell, Run]:
    """A finished classifier, and the prior of the same training labels, on the patients that are scored.

    Args:
        pretraining: the piece that made its encoder.
    """
    _, share, seed = cell
    folds = pd.read_csv(piece.options.folds, dtype={"patient_id": str})
    labels = read_labels(piece.options.labels)
    is_scored = labels.patient_id.isin(folds.patient_id[folds.fold == 0])
    training, truth = labels[~is_scored], labels[is_scored].reset_index(drop=True)
    predicted = read_probabilities(piece.folder / "oof.csv")[["patient_id", *COLUMNS]]
    run = {"patients": len(training), **figures(truth, predicted)}
    for what, maker in (("classifier", piece), ("encoder", pretraining)):
        if maker is not None and maker.is_finished:
            record = maker.read_record()
            run |= {f"{what}_seconds": record["seconds"], f"{what}_steps": record["steps"]}
    prior = constant(weight_aware_prior(training), truth.patient_id)
    return {
        cell: run,
        (PRIOR, share, seed): {"patients": len(training), **figures(truth, prior)},
    }


def figures(truth: pd.DataFrame, predicted: pd.DataFrame) -> dict[str, float]:
    """The figures of predictions, in the order of `FIGURES`."""
    classes = class_metrics(truth, predicted)
    injuries = class_means(classes, injuries_only=True)
    return {
        "score": score(truth, predicted).score,
        **class_means(classes),
        **{f"injury_{name}": value for name, value in injuries.items()},
    }


def summarise(runs: Mapping[Cell, Run]) -> list[dict[str, Any]]:
    """Mean and spread over seeds, a row a start and share of labels, in the order of `runs`."""
    groups: dict[tuple[Start, float], dict[int, Run]] = {}
    for (start, share, seed), run in runs.items():
        groups.setdefault((start, share), {})[seed] = run
    rows = []
    for (start, share), by_seed in groups.items():
        members = list(by_seed.values())
        row = {"start": start.method, "unlabelled": start.unlabelled, "labels": share, "seeds": list(by_seed)}
        row["patients"] = fmean(run["patients"] for run in members)
        row |= {name: spread([run[name] for run in members]) for name in FIGURES}
        for name in COSTS:
            known = [run[name] for run in members if run.get(name) is not None]
            row[name] = fmean(known) if known else None
        rows.append(row)
    return rows


def comparisons(starts: Sequence[Start]) -> list[tuple[Start, Start]]:
    """What is compared with what.

    Scratch with the prior; every encoder with scratch, with the first encoder, and with the one of its method
    that saw the fewest patients.
    """
    encoders = [start for start in starts if start != SCRATCH]
    pairs = [(SCRATCH, PRIOR), *((start, SCRATCH) for start in encoders)]
    pairs += [(start, encoders[0]) for start in encoders]
    for start in encoders:
        of_method = [other for other in encoders if other.method == start.method]
        pairs.append((start, min(of_method, key=lambda other: other.unlabelled)))
    return [pair for pair in dict.fromkeys(pairs) if pair[0] != pair[1]]


def compare(runs: Mapping[Cell, Run], pairs: Sequence[tuple[Start, Start]]) -> list[dict[str, Any]]:
    """Differences of the first to the second of each pair, by share of labels, paired by seed."""
    rows = []
    shares = list(dict.fromkeys(share for _, share, _ in runs))
    for (start, baseline), share in product(pairs, shares):
        seeds = [seed for other, of, seed in runs if (other, of) == (start, share)]
        seeds = [seed for seed in seeds if (baseline, share, seed) in runs]
        if not seeds:
            continue
        both = [(runs[start, share, seed], runs[baseline, share, seed]) for seed in seeds]
        row = {"start": start.name, "minus": baseline.name, "labels": share, "seeds": seeds}
        row |= {name: spread([run[name] - base[name] for run, base in both]) for name in FIGURES}
        row["better"] = sum(run["score"] < base["score"] for run, base in both)
        rows.append(row)
    return rows


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """`mean, sd, min, max`; the standard deviation (of a sample) needs two values."""
    sd = stdev(values) if len(values) > 1 else None
    return {"mean": fmean(values), "sd": sd, "min": min(values), "max": max(values)}


def format_means(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean ± standard deviation over seeds."""
    table = [
        {
            "start": row["start"],
            "unlabelled": row["unlabelled"] or "-",
            "labels": f"{100 * row['labels']:g} % ({row['patients']:.0f})",
            "seeds": len(row["seeds"]),
            **{title: format_spread(row[name], ".3f") for name, title in _SHOWN.items()},
            "pre-training": _format_cost(row, "encoder"),
            "classifier": _format_cost(row, "classifier"),
        }
        for row in rows
    ]
    return markdown(table)


def format_differences(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: differences by seed, as `format_means`."""
    table = [
        {
            "start": row["start"],
            "minus": row["minus"],
            "labels": f"{100 * row['labels']:g} %",
            "score better": f"{row['better']} of {len(row['seeds'])}",
            **{title: format_spread(row[name], "+.3f") for name, title in _SHOWN.items()},
        }
        for row in rows
    ]
    return markdown(table)


def format_spread(values: dict[str, float | None], form: str) -> str:
    """`mean ± standard deviation`; a single value alone."""
    mean = format(values["mean"], form)
    return mean if values["sd"] is None else f"{mean} ± {values['sd']:.3f}"


def _format_cost(row: dict[str, Any], what: str) -> str:
    seconds, steps = row[f"{what}_seconds"], row[f"{what}_steps"]
    if steps is None:
        return "-"
    return f"{steps:.0f} steps" + ("" if seconds is None else f", {seconds:.0f} s")


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table with the columns of the first row."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
