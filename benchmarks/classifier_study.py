"""What each feature of the classifier is worth: one at a time, on phantoms, against the same baseline.

    python benchmarks/classifier_study.py --work data/cls_study --jobs 2 --json classifier.json
    python benchmarks/classifier_study.py --work data/cls_study --stage table

200 phantom patients, all with organ masks and with image-level labels of bleeding and bowel injuries, in two
folds: 100 are trained on, the other 100 are predicted, and the other way round. Stages, each of which keeps
what is finished:

    data      the phantoms, prepared at 144 px, and 100 further patients without labels
    pretrain  2D-VoCo (plus_small) on the latter, for the encoder
    train     train_cls.py for every feature
    table     the score of each over all 200 patients, and its difference to the baseline with an interval:
              bootstrap over patients, both scored on the same draws

The second level and the post-processing are fitted on the baseline's out-of-fold predictions; "mean" is the
plain mean of all runs. A single seed: differences smaller than their interval decide nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import pandas as pd
from harness import read_preset, run_main
from study import Piece, TwoFoldOptions, make_all, make_two_folds, run_stages, split_finished

from src.cls import second_level
from src.cls.options import ClassifierOptions
from src.core.errors import UserError
from src.core.log import format_table, say
from src.data.labels import read_labels, read_probabilities
from src.score.postfit import cross_fit, deal_folds
from src.score.postprocess import PatientRows
from src.score.scoring import side_by_side
from src.score.submission import combine_series, combine_tables
from src.voco.options import VocoOptions

PHANTOMS = {
    "labelled": "--patients 200 --test-patients 0 --segmentation-rate 1 --seed 11",
    "unlabelled": "--patients 100 --test-patients 0 --seed 12",
}
PRESET, SLICES, SIZE = "configs/cls/study.yaml", 24, 144
"""The baseline's preset of train_cls.py, the slices of a stack, and the side of the prepared images."""
SEED, ROUNDS = 0, 1000
"""Of all trainings, and bootstrap resamples."""
BASELINE = "baseline"
_SMALL = ("--crop", "64")
"""Crops of the organs fill it, with a quarter of the pixels of the full size."""
FEATURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        BASELINE: (),
        "gru": ("--sequence", "gru"),
        "transformer": ("--sequence", "transformer"),
        "attention-alone": ("--sequence", "none", "--pooling", "attention"),
        "lstm-attention": ("--pooling", "attention"),
        "organ-slices": ("--z-range", "organs"),
        "mask-channels": ("--masks", "each"),
        "organ-slices-masks": ("--z-range", "organs", "--masks", "each"),
        "neighbours": ("--neighbours", "3"),
        "slice-targets": ("--slice-loss", "0.5"),
        "image-labels": ("--slice-loss", "0.5", "--image-labels", "{marks}"),
        "organ-loss": ("--organ-loss", "0.5", "--organ-slices", "6"),
        "metric-loss": ("--loss", "metric"),
        "mixup": ("--mixup", "0.5"),
        "cutmix": ("--cutmix", "0.5"),
        "class-balance": ("--class-balance", "0.5"),
        "voco-encoder": ("--encoder", "{encoder}"),
        "voco-layer-decay": ("--encoder", "{encoder}", "--layer-decay", "0.8"),
        "single": ("--mode", "single"),
        "organ-crops": ("--z-range", "organs", *_SMALL, "--in-plane", "organs"),
        "organ-crops-single": ("--mode", "single", "--z-range", "organs", *_SMALL, "--in-plane", "organs"),
        "own-crops-single": ("--mode", "single", "--z-range", "own", *_SMALL, "--in-plane", "own"),
        "together": (
            *("--z-range", "organs", "--masks", "each", "--organ-loss", "0.5", "--organ-slices", "6"),
            *("--slice-loss", "0.5", "--image-labels", "{marks}", "--pooling", "attention"),
            *("--loss", "metric", "--encoder", "{encoder}"),
        ),
        "other-seed": ("--seed", f"{SEED + 1}"),
    }
)
"""What each adds to the command of the baseline; `other-seed` adds nothing: the effect of chance."""

SECOND, POST = "second-level", "post-processing"


@dataclass(frozen=True, kw_only=True)
class ClassifierStudyOptions(TwoFoldOptions):
    stage: tuple[Literal["data", "pretrain", "train", "table"], ...] = ("data", "pretrain", "train", "table")
    """stages to run, always in this order"""
    features: tuple[str, ...] = tuple(FEATURES)
    """which, besides the baseline"""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = set(self.features) - set(FEATURES)
        if unknown:
            raise ValueError(f"no feature {min(unknown)!r}; there are: {', '.join(FEATURES)}")


def main(options: ClassifierStudyOptions) -> dict[str, Any] | None:
    stages = {
        "data": lambda: make_data(options),
        "pretrain": lambda: make_encoder(options),
        "train": lambda: train(options),
        "table": lambda: show(options),
    }
    return run_stages(options, stages)


def make_data(options: ClassifierStudyOptions) -> None:
    """Make and prepare the phantoms and the folds; what is there is kept."""
    make_two_folds(options, PHANTOMS, SIZE)


def make_encoder(options: ClassifierStudyOptions) -> None:
    """Pre-train the encoder, where a feature needs it."""
    if any("{encoder}" in FEATURES[name] for name in options.features):
        data = options.work / "prepared_unlabelled"
        given = ("--data", data, "--output", options.work / "voco", "--seed", str(SEED))
        run = read_preset(VocoOptions, "voco/plus_small", *given, "--precision", options.precision)
        make_all("pretrain", {"encoder": Piece(run, (data / "series.csv",))}, options.jobs)


def plan(options: ClassifierStudyOptions) -> dict[str, Piece]:
    """Every training, the baseline first."""
    paths = {
        "marks": str(options.raw / "image_level_labels.csv"),
        "encoder": options.work / "voco" / "encoder.safetensors",
    }
    tables = [options.prepared / "series.csv", options.raw / "train.csv", options.folds]
    pieces = {}
    for name in dict.fromkeys((BASELINE, *options.features)):
        output = options.work / "runs" / name
        added = [part.format_map(paths) for part in FEATURES[name]]
        given = ["--data", options.prepared, "--labels", options.raw / "train.csv", "--folds", options.folds]
        given += ["--output", output, "--slices", str(SLICES), "--seed", str(SEED)]
        run = read_preset(ClassifierOptions, PRESET, *given, "--precision", options.precision, *added)
        more = [path for path in (run.encoder, run.image_labels) if path]
        pieces[name] = Piece(run, (*tables, *more))
    return pieces


def train(options: ClassifierStudyOptions) -> None:
    """Train all features, and fit the second level on the baseline; what is there is kept."""
    planned = plan(options)
    make_all("train", planned, options.jobs)
    baseline, output = planned[BASELINE].folder, options.work / "runs" / SECOND
    second_level.main(
        [
            *("--runs", str(baseline), "--data", str(options.prepared), "--output", str(output)),
            *("--labels", str(options.raw / "train.csv"), "--folds", str(options.folds)),
            *("--seed", str(SEED)),
        ]
    )


def show(options: ClassifierStudyOptions) -> dict[str, Any]:
    """Print the table of what is finished; returns the figures.

    Raises:
        UserError: the baseline is not finished.
    """
    finished, missing = split_finished(plan(options))
    if BASELINE not in finished:
        raise UserError(f"the baseline of {options.work} is not finished: run --stage train first")
    tables = {name: read_probabilities(piece.folder / "oof_series.csv") for name, piece in finished.items()}
    seconds = {name: piece.read_record()["seconds"] for name, piece in finished.items()}
    labels = read_labels(options.raw / "train.csv")
    runs = {name: combine_series(table) for name, table in tables.items()}
    second = options.work / "runs" / SECOND / "oof.csv"
    if second.is_file():
        runs[SECOND] = read_probabilities(second)
    if len(tables) > 1:
        runs["mean"] = combine_tables([runs[name] for name in tables])
    try:
        runs |= post_process(labels, tables)
    except UserError as error:
        say(f"{POST} is left out: {error}")
    rows = side_by_side(labels, runs, ROUNDS, level=0.9)
    say(f"\n{len(labels)} patients, two folds\n\n{format_table(shown_rows(rows, seconds), 3)}")
    if missing:
        say(f"\nnot finished yet: {', '.join(missing)}")
    return {"patients": len(labels), "runs": rows, "seconds": seconds, "missing": missing}


def post_process(labels: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Cross-fitted predictions of the baseline, and of all runs together.

    Raises:
        UserError: too few patients of an injury.
    """
    folds = pd.Series(deal_folds(labels, 5))  # of more patients to fit on than two folds leave
    groups = {POST: [tables[BASELINE]]}
    if len(tables) > 1:
        groups[f"mean-{POST}"] = list(tables.values())
    return {
        name: cross_fit(labels, PatientRows.read(group, labels.patient_id), folds).predictions
        for name, group in groups.items()
    }


def shown_rows(rows: list[dict[str, Any]], seconds: dict[str, float | None]) -> list[dict[str, Any]]:
    """The rows of the printed table."""
    shown = []
    for row in rows:
        line = {"feature": row["name"], "score": row["score"], "any_injury": row["losses"]["any_injury"]}
        change = row.get("difference")
        line["difference"] = "{observed:+.3f}".format_map(change) if change else ""
        line["90 % interval"] = "{low:+.3f} to {high:+.3f}".format_map(change) if change else ""
        shown.append(line | {"seconds": seconds.get(row["name"])})
    return shown


if __name__ == "__main__":
    run_main(main, ClassifierStudyOptions)
