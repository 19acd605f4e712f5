"""What each feature of the classifier is worth: one at a time, on phantoms, against the same baseline.

    python benchmarks/classifier_study.py --work data/cls_study --jobs 2 --json classifier.json
    python benchmarks/classifier_study.py --work data/cls_study --stage table

200 phantom patients, all with organ masks and with image-level labels of bleeding and bowel injuries, in two
folds: 100 are trained on, the other 100 are predicted, and the other way round. Stages, each of which keeps
what is finished:

    data      the phantoms, prepared at --size px, and 100 further patients without labels
    pretrain  2D-VoCo (plus_small) on the latter, for the encoder
    train     train_cls.py with --config for every feature
    table     the score of each over all 200 patients, and its difference to the baseline with an interval:
              bootstrap over patients, both scored on the same draws

The second level and the post-processing are fitted on what the baseline says out of fold; "mean"
is the plain mean of all runs. A single seed: differences smaller than their interval say nothing.
"""

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ct_files import machine
from joblib import cpu_count
from study_pieces import Piece, make_all, read_classifier, read_preset

import prepare_data
from src.cls import second_level
from src.core.config import parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import write_json
from src.core.log import format_table, say
from src.core.run_folder import only_writer
from src.data import folds as fold_maker
from src.data.labels import read_labels, read_probabilities
from src.phantom import __main__ as phantom
from src.score.postfit import cross_fit, deal_folds
from src.score.postprocess import PatientRows
from src.score.scoring import side_by_side
from src.score.submission import combine_series, combine_tables

PHANTOMS = {
    "labelled": "--patients 200 --test-patients 0 --segmentation-rate 1 --seed 11",
    "unlabelled": "--patients 100 --test-patients 0 --seed 12",
}
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
        "other-seed": ("--seed", "{other_seed}"),
    }
)
"""What each adds to the command of the baseline; `other-seed` adds nothing, and shows how far luck goes."""

SECOND, POST = "second-level", "post-processing"


@dataclass(frozen=True)
class StudyOptions:
    work: Path
    """folder of the study: all that it makes, and what it continues from"""
    stage: tuple[Literal["data", "pretrain", "train", "table"], ...] = ("data", "pretrain", "train", "table")
    """stages to run, always in this order"""
    features: tuple[str, ...] = tuple(FEATURES)
    """which, besides the baseline"""
    preset: str = "configs/cls/study.yaml"
    """preset of train_cls.py that the baseline is"""
    slices: int = 24
    """slices of a stack"""
    size: int = 144
    """side of the prepared images in pixels"""
    seed: int = 0
    """of all trainings"""
    precision: str = "auto"
    """of all trainings, as train_cls.py takes it"""
    jobs: int = 1
    """trainings at a time, with the cores shared among them"""
    rounds: int = 1000
    """bootstrap resamples"""
    json: Path | None = None
    """file for the figures"""

    def __post_init__(self) -> None:
        unknown = set(self.features) - set(FEATURES)
        if unknown:
            raise ValueError(f"no feature {min(unknown)!r}; there are: {', '.join(FEATURES)}")
        if not self.stage or self.jobs < 1:
            raise ValueError("--stage needs at least one value, --jobs at least 1")

    @property
    def prepared(self) -> Path:
        return self.work / "prepared_labelled"

    @property
    def folds(self) -> Path:
        return self.work / "folds.csv"

    @property
    def raw(self) -> Path:
        return self.work / "labelled"


def main(argv: list[str] | None = None) -> None:
    options = parse_options(StudyOptions, argv, prog="classifier_study.py", description=__doc__)
    options.work.mkdir(parents=True, exist_ok=True)
    # a table may be looked at while a study is at work
    with only_writer(options.work) if {*options.stage} - {"table"} else nullcontext():
        if "data" in options.stage:
            make_data(options)
        if "pretrain" in options.stage and any("{encoder}" in FEATURES[name] for name in options.features):
            make_all("pretrain", [pretraining(options)], options.jobs)
        if "train" in options.stage:
            make_all("train", list(plan(options).values()), options.jobs)
            add_second_level(options)
    if "table" in options.stage:
        show(options)


def make_data(options: StudyOptions) -> None:
    """Make and prepare the phantoms and the folds; what is there is kept."""
    for name, arguments in PHANTOMS.items():
        raw, prepared = options.work / name, options.work / f"prepared_{name}"
        phantom.main(["--output", str(raw), *arguments.split(), "--jobs", str(cpu_count())])
        if not (prepared / "series.csv").is_file():
            given = ["--input", str(raw), "--output", str(prepared), "--size", str(options.size)]
            prepare_data.main([*given, "--jobs", str(cpu_count())])
    if not options.folds.is_file():
        tables = ["--labels", str(options.raw / "train.csv")]
        tables += ["--series", str(options.raw / "train_series_meta.csv")]
        fold_maker.main([*tables, "--output", str(options.folds), "--n-folds", "2"])


def pretraining(options: StudyOptions) -> Piece:
    """The run that gives the encoder."""
    data, output = options.work / "prepared_unlabelled", options.work / "voco"
    seed = ("--seed", str(options.seed), "--precision", options.precision)
    return Piece(read_preset("plus_small", data, output, *seed), (data / "series.csv",))


def plan(options: StudyOptions) -> dict[str, Piece]:
    """Every training, the baseline first."""
    paths = {
        "marks": str(options.raw / "image_level_labels.csv"),
        "encoder": options.work / "voco" / "encoder.safetensors",
        "other_seed": str(options.seed + 1),
    }
    tables = [options.prepared / "series.csv", options.raw / "train.csv", options.folds]
    pieces = {}
    for name in dict.fromkeys((BASELINE, *options.features)):
        output = options.work / "runs" / name
        added = [part.format_map(paths) for part in FEATURES[name]]
        given = ["--labels", str(options.raw / "train.csv"), "--folds", str(options.folds)]
        given += ["--slices", str(options.slices), "--seed", str(options.seed)]
        run = read_classifier(
            options.preset, options.prepared, output, *given, "--precision", options.precision, *added
        )
        inputs = [
            *tables,
            *([run.encoder] if run.encoder else []),
            *([run.image_labels] if run.image_labels else []),
        ]
        pieces[name] = Piece(run, tuple(inputs))
    return pieces


def add_second_level(options: StudyOptions) -> None:
    """Fit the second level on the baseline; what is there is kept."""
    baseline, output = plan(options)[BASELINE].folder, options.work / "runs" / SECOND
    second_level.main(
        [
            *("--runs", str(baseline), "--data", str(options.prepared), "--output", str(output)),
            *("--labels", str(options.raw / "train.csv"), "--folds", str(options.folds)),
            *("--seed", str(options.seed)),
        ]
    )


def show(options: StudyOptions) -> None:
    """Print the table of what is finished, and write the figures.

    Raises:
        UserError: the baseline is not finished.
    """
    planned = plan(options)
    if not planned[BASELINE].is_finished:
        raise UserError(f"the baseline of {options.work} is not finished: run --stage train first")
    tables, seconds = {}, {}
    for name, piece in planned.items():
        if piece.is_finished:
            piece.require_same()
            tables[name] = read_probabilities(piece.folder / "oof_series.csv")
            seconds[name] = piece.read_record()["seconds"]
    missing = [name for name, piece in planned.items() if not piece.is_finished]
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
    rows = side_by_side(labels, runs, options.rounds, level=0.9)
    report(options, labels, rows, seconds, missing)


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


def report(
    options: StudyOptions,
    labels: pd.DataFrame,
    rows: list[dict],
    seconds: dict[str, float | None],
    missing: list[str],
) -> None:
    shown = []
    for row in rows:
        change = row.get("difference")
        line = {"feature": row["name"], "score": row["score"], "any_injury": row["losses"]["any_injury"]}
        line["difference"] = "" if change is None else f"{change['observed']:+.3f}"
        line["90 % interval"] = "" if change is None else f"{change['low']:+.3f} to {change['high']:+.3f}"
        line["seconds"] = "" if seconds.get(row["name"]) is None else f"{seconds[row['name']]:.0f}"
        shown.append(line)
    say(f"\n{machine()}\n{len(labels)} patients, two folds\n\n{format_table(shown, 3)}")
    if missing:
        say(f"\nnot finished yet: {', '.join(missing)}")
    if options.json:
        write_json(
            {
                "machine": machine(),
                "patients": len(labels),
                "runs": rows,
                "seconds": seconds,
                "missing": missing,
            },
            options.json,
        )


if __name__ == "__main__":
    with exit_on_user_error():
        main()
