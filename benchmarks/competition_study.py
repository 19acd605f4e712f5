"""What is the competition preset worth, and each of its ingredients? On phantoms, with masks of segment.py.

    python benchmarks/competition_study.py --work data/competition --jobs 2
    python benchmarks/competition_study.py --work data/competition --rows no-neighbours --seeds 0 --fold 1
    python benchmarks/competition_study.py --table

200 phantom patients in two folds: the networks of a fold are trained on the other 100 and predict its own.
`competition` is the preset of that name at a size for CPUs: 128 px of the organs' square, 16 x 3 slices, 10
epochs, one backbone from ImageNet; every other row takes one of its ingredients away, or is the preset
cnn_lstm at the same size. Rate, dropout and clipping are the same in all rows, and were chosen in
representation_study.py on other phantoms by the loss on training patients.

Every row, seed and fold is a piece of its own: a file in --pieces with its predictions, command, seconds and
digests of code and data. Stages keep what is finished, and several processes may work on different pieces:

    data     the phantoms, prepared at 192 px; 40 others with true masks, for the segmenter
    segment  train_seg.py on the latter, segment.py on the former
    train    train_cls.py
    table    all pieces of --pieces; --table prints it alone
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd
from harness import read_preset, run_main
from study import Piece, TwoFoldOptions, digest_code, digest_files, make_all, make_two_folds, run_stages

import segment
from src.cls.options import ClassifierOptions
from src.core.config import ROOT
from src.core.errors import UserError
from src.core.files import write_json, write_table
from src.core.log import say
from src.core.targets import COLUMNS
from src.data.labels import read_labels, read_probabilities
from src.score.bootstrap import difference_interval
from src.score.metric import LossTerms, loss_terms
from src.score.submission import combine_series
from src.seg.options import SegOptions

STAGES = ("data", "segment", "train", "table")
PIECES = ROOT / "docs" / "studies" / "competition"
PHANTOMS = MappingProxyType(
    {
        "labelled": "--patients 200 --test-patients 0 --seed 31",
        "masked": "--patients 40 --test-patients 0 --segmentation-rate 1 --seed 32",
    }
)
SIZE = 192
"""Side of the prepared images in pixels."""
SEGMENTER = ("--size", "96", "--windows", "soft", "--steps", "1800", "--validation", "0.1", "--workers", "0")
SEGMENTER_PRESET = "seg/supervised_small"
LEVEL, ROUNDS = 0.9, 1000
"""Of the intervals over patients."""

COMMON = (
    *("--backbone", "tf_efficientnet_lite0", "--windows", "soft", "--epochs", "10", "--batch", "2"),
    *("--lr", "2e-3", "--encoder-lr-scale", "0.33", "--ema-decay", "0.98", "--clip", "5", "--dropout", "0"),
    *("--hidden", "64", "--rotate90", "0", "--coarse-dropout", "0", "--tta", "none", "--workers", "0"),
)
BASELINE = ("--slices", "24", "--crop", "144")
"""cnn_lstm in the same ratio to the competition preset: 1.5 times the slices, 192 of 256 px."""
SMALL = (
    *(
        "--slices",
        "16",
        "--crop",
        "128",
        "--offsets",
        "1",
        "--organ-slices",
        "4",
        "--masks-from",
        "predicted",
    ),
    *("--accumulation", "1", "--micro-batch", "0", "--layer-decay", "1", "--drop-path", "0"),
)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    title: str
    changes: tuple[str, ...] = ()
    preset: str = "cls/competition"
    first_weights: str = "package"
    """ImageNet weights from a package, or none"""
    seeds: tuple[int, ...] = (0,)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Options of train_cls.py besides data and seed; `{marks}` is the table of marked slices."""
        size = BASELINE if self.preset == "cls/cnn_lstm" else (*SMALL, "--image-labels", "{marks}")
        return (*COMMON, "--first-weights", self.first_weights, *size, *self.changes)


ROWS = {
    "random": Row("`cnn_lstm` from random weights", (), "cls/cnn_lstm", "none", (0, 1)),
    "imagenet": Row("`cnn_lstm` from ImageNet", (), "cls/cnn_lstm", seeds=(0, 1)),
    "competition": Row("`competition` from ImageNet", seeds=(0, 1)),
    "no-square": Row("without the organs' square", ("--in-plane", "body", "--crop", "144")),
    "no-z-range": Row("without the organs' slices", ("--z-range", "body")),
    "no-neighbours": Row("without neighbours", ("--neighbours", "1")),
    "adjacent": Row("with adjacent slices, not 4 mm apart", ("--neighbour-mm", "0")),
    "no-marks": Row("without image-level labels", ("--image-labels", "")),
    "no-slice-loss": Row("without slice targets", ("--slice-loss", "0", "--image-labels", "")),
    "no-organ-loss": Row("without the organ loss", ("--organ-loss", "0")),
    "no-metric-loss": Row("without the metric as the loss", ("--loss", "weighted")),
    "no-cutmix": Row("without CutMix", ("--cutmix", "0")),
    "no-ema": Row("without the average of weights", ("--ema-decay", "0")),
}
"""Rows of the table, by name."""
BASES = ("imagenet", "competition")
"""Rows that the others are compared with."""


@dataclass(frozen=True, kw_only=True)
class CompetitionOptions(TwoFoldOptions):
    work: Path = Path("data/competition")
    """folder of data and trainings, which are not part of the project"""
    rows: tuple[str, ...] = tuple(ROWS)
    """names of rows"""
    seeds: tuple[int, ...] = (0, 1)
    """seeds of every row; a row that has fewer is made for those"""
    fold: tuple[int, ...] = (0, 1)
    """folds of every row"""
    pieces: Path = PIECES
    """folder of the pieces"""
    stage: tuple[Literal["data", "segment", "train", "table"], ...] = STAGES
    """stages to run, always in this order"""
    table: bool = False
    """print the tables of --pieces and do nothing else"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.rows:
            if name not in ROWS:
                raise ValueError(f"--rows has no {name}, only {' '.join(ROWS)}")

    def planned(self) -> list[tuple[str, int, int]]:
        """Row, seed and fold of every piece, seed by seed: an unfinished study compares like with like."""
        return [
            (row, seed, fold)
            for seed in self.seeds
            for row in self.rows
            if seed in ROWS[row].seeds
            for fold in self.fold
        ]


def main(options: CompetitionOptions) -> dict[str, Any] | None:
    if options.table:
        return show_pieces(options.pieces)
    stages = {
        "data": lambda: make_data(options),
        "segment": lambda: make_masks(options),
        "train": lambda: train(options),
        "table": lambda: show_pieces(options.pieces),
    }
    return run_stages(options, stages, alone=["data", "segment"])


def make_data(options: CompetitionOptions) -> None:
    """Make and prepare the phantoms and the folds; what is there is kept."""
    make_two_folds(options, PHANTOMS, SIZE)
    options.pieces.mkdir(parents=True, exist_ok=True)
    write_table(read_labels(options.raw / "train.csv"), options.pieces / "labels.csv")


def make_masks(options: CompetitionOptions) -> None:
    """Train the segmenter on other phantoms, and segment those that are classified."""
    data, output = options.work / "prepared_masked", options.work / "segmenter"
    run = read_preset(SegOptions, SEGMENTER_PRESET, "--data", data, "--output", output, *SEGMENTER)
    make_all("segment", {"segmenter": Piece(run, (data / "series.csv",))}, options.jobs)
    segment.main(["--model", str(output), "--data", str(options.prepared), "--workers", "0"])


def plan(options: CompetitionOptions) -> dict[tuple[str, int, int], Piece]:
    """Every training."""
    tables = [options.prepared / "series.csv", options.raw / "train.csv", options.folds]
    marks, masks = options.raw / "image_level_labels.csv", options.prepared / "predicted_masks" / "organs.csv"
    pieces = {}
    for name, seed, fold in options.planned():
        row = ROWS[name]
        given = ["--data", options.prepared, "--labels", tables[1], "--folds", options.folds]
        given += ["--output", options.work / "runs" / f"{name}-s{seed}-f{fold}", "--fold", str(fold)]
        given += ["--seed", str(seed), "--precision", options.precision, "--cache", options.work / "cache"]
        added = without_empty([part.format(marks=marks) for part in row.arguments])
        run = read_preset(ClassifierOptions, row.preset, *given, *added)
        pieces[name, seed, fold] = Piece(run, (*tables, *([masks] if run.needs_organs else [])))
    return pieces


def without_empty(arguments: Sequence[str]) -> list[str]:
    """Leave out options whose last value is empty, wherever they are given."""
    pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
    last = dict(pairs)
    return [part for name, value in pairs if last[name] for part in (name, value)]


def train(options: CompetitionOptions) -> None:
    """Train every piece, and write its file; what is there is kept."""
    planned = plan(options)
    make_all("train", planned, options.jobs)
    code, data = digest_code(), digest_files(options.prepared.rglob("*.png"))
    for (name, seed, fold), piece in planned.items():
        path = options.pieces / f"{name}-s{seed}-f{fold}.json"
        if path.is_file():
            continue
        by_patient = combine_series(read_probabilities(piece.folder / "oof_series.csv"))
        rows = by_patient[["patient_id", *COLUMNS]].itertuples(index=False)
        command = f"python benchmarks/competition_study.py --rows {name} --seeds {seed} --fold {fold}"
        about = {"row": name, "seed": seed, "fold": fold, "command": command, "code": code, "data": data}
        seconds = piece.read_record()["seconds"]
        predictions = {patient: [round(value, 6) for value in values] for patient, *values in rows}
        write_json(about | {"seconds": seconds, "predictions": predictions}, path)


def show_pieces(pieces: Path) -> dict[str, Any]:
    """Print the table of the pieces; returns its rows.

    Raises:
        UserError: there are no pieces.
    """
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(pieces.glob("*-s*-f*.json"))]
    if not found:
        raise UserError(f"{pieces} holds no pieces: run --stage data segment train first")
    labels = read_labels(pieces / "labels.csv")
    terms = {name: terms_by_seed(found, name, labels) for name in ROWS}
    seconds = {name: [each["seconds"] for each in found if each["row"] == name] for name in ROWS}
    rows = [describe_row(name, terms, seconds[name]) for name in ROWS if terms[name]]
    say(f"{len(labels)} patients, two folds; intervals: {LEVEL:.0%} over patients\n\n{to_markdown(rows)}")
    return {"rows": rows}


def terms_by_seed(
    found: Sequence[Mapping[str, Any]], name: str, labels: pd.DataFrame
) -> dict[int, LossTerms]:
    """Losses of each patient, for every seed of a row with all folds."""
    by_seed: dict[int, dict[str, list[float]]] = {}
    for piece in found:
        if piece["row"] == name:
            by_seed.setdefault(piece["seed"], {}).update(piece["predictions"])
    complete = {seed: table for seed, table in by_seed.items() if len(table) == len(labels)}
    tables = {
        seed: pd.DataFrame.from_dict(table, orient="index", columns=list(COLUMNS))
        .rename_axis("patient_id")
        .reset_index()
        for seed, table in complete.items()
    }
    return {seed: loss_terms(labels, table) for seed, table in tables.items()}


def describe_row(
    name: str, terms: Mapping[str, Mapping[int, LossTerms]], seconds: Sequence[float]
) -> dict[str, Any]:
    """A row of the table: mean score and spread over seeds, and differences to the bases, paired by seed."""
    own = terms[name]
    scores = [each.average(np.ones(len(each.weights))).mean() for each in own.values()]
    row = {"row": ROWS[name].title, "seeds": len(scores), "score": f"{np.mean(scores):.3f}"}
    if len(scores) > 1:
        row["score"] += f" ± {np.std(scores, ddof=1):.3f}"
    for base in BASES:
        shared = sorted(own.keys() & terms[base].keys())
        row[f"minus {ROWS[base].title}"] = "-"
        if shared and base != name:
            one, other = (mean_terms([each[seed] for seed in shared]) for each in (own, terms[base]))
            found = difference_interval(one, other, ROUNDS, level=LEVEL)
            row[f"minus {ROWS[base].title}"] = f"{found.observed:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return row | {"seconds per fold": f"{np.mean(seconds):.0f}"}


def mean_terms(seeds: Sequence[LossTerms]) -> LossTerms:
    """Mean losses of each patient over seeds; the weights are those of the labels."""
    return LossTerms(np.mean([each.losses for each in seeds], axis=0), seeds[0].weights)


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


if __name__ == "__main__":
    run_main(main, CompetitionOptions)
