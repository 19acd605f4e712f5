"""Does pre-training help the task? CNN-LSTMs from scratch and from encoders, with few and with all labels.

    python benchmarks/transfer_study.py --work data/study --json study.json
    python benchmarks/transfer_study.py --work data/study --stage classify table --jobs 2

Stages, each of which keeps what is finished, so that the same command continues a study that was killed:

    data       phantoms: 200 labelled patients, 300 test patients, 400 without labels, 40 with segmentations
               for probes, prepared in three windows
    pretrain   train_voco.py, for each seed and each of --first-weights: every preset on the most unlabelled
               patients, the last preset on fewer as well
    classify   train_cls.py, for each seed and share of labels, from each of --first-weights and from each
               encoder; the last epoch's weight average predicts the test patients
    table      score, mAP, precision and recall of each, mean and spread over seeds, and differences by seed

Labelled, unlabelled and test patients differ. A share of the labels is a stratified draw that follows from
the seed: all methods get the same patients, each seed others. Encoder and classifier of a run have the same
seed. A piece's seconds are those of its steps; --jobs 2 halves the cores of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Literal

import pandas as pd
from harness import read_preset, run_main
from study import Piece, StudyOptions, make_all, run_stages, split_finished
from study_sets import SIZE, Start, classification, make_data, pretraining, read_predictions, voco_preset
from study_table import difference_rows, mean_rows

from src.cls.options import ClassifierOptions
from src.core.errors import UserError
from src.core.log import format_table, say
from src.score.classes import class_means, class_metrics
from src.score.metric import score
from src.score.prior import constant, weight_aware_prior
from src.voco.options import VocoOptions

STAGES = ("data", "pretrain", "classify", "table")
FIGURES = {
    "score": "score (lower)",
    "map": "mAP",
    "precision": "precision",
    "recall": "recall",
    "injury_map": "mAP of injuries",
}
"""Means over 13 classes, or over the 8 injuries."""
COSTS = ("patients", "encoder_steps", "encoder_seconds", "classifier_steps", "classifier_seconds")
PRIOR = "prior"


@dataclass(frozen=True, kw_only=True)
class TransferOptions(StudyOptions):
    stage: tuple[Literal["data", "pretrain", "classify", "table"], ...] = STAGES
    """stages to run, always in this order"""
    presets: tuple[str, ...] = ("v2_small", "plus_small")
    """presets in configs/voco, or paths; the others are compared with the first"""
    unlabelled: tuple[int, ...] = (25, 100, 400)
    """numbers of patients to pre-train on; the last of --presets on each, the others on the largest"""
    shares: tuple[float, ...] = (0.1, 1.0)
    """shares of the labelled training patients, each one over a whole number"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """one run of everything each"""
    first_weights: tuple[Literal["none", "package", "imagenet"], ...] = ("none",)
    """of the encoders, and of classifiers without one"""
    backbone: str | None = None
    """of all networks, in place of the presets' own"""
    classifier: str = "configs/cls/study.yaml"
    """preset of the classifiers"""
    size: int = SIZE
    """side of the prepared images in pixels"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("presets", "unlabelled", "shares", "seeds", "first_weights"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"--{name} needs at least one value, and none twice")
        if any(not 0 < share <= 1 or abs(1 / share - round(1 / share)) > 1e-6 for share in self.shares):
            raise ValueError("--shares takes 1, 0.5, 0.1 and the like: one over a whole number")

    @property
    def changes(self) -> tuple[str, ...]:
        """Options of all trainings that replace those of the presets."""
        return ("--backbone", self.backbone) if self.backbone else ()

    def plain(self) -> list[Start]:
        """Starts without an encoder."""
        return [Start(first_weights=first) for first in self.first_weights]

    def encoders(self) -> list[Start]:
        last, most = self.presets[-1], max(self.unlabelled)
        trained_on = [(preset, most) for preset in self.presets[:-1]]
        trained_on += [(last, patients) for patients in sorted(self.unlabelled)]
        return [Start(*each, first) for each in trained_on for first in self.first_weights]


def main(options: TransferOptions) -> dict[str, Any] | None:
    check_backbones(options)
    stages = {
        "data": lambda: make_data(options.work, options.size),
        "pretrain": lambda: make_all("pretrain", plan_pretraining(options), options.jobs),
        "classify": lambda: make_all("classify", plan_classification(options), options.jobs),
        "table": lambda: show(options),
    }
    return run_stages(options, stages)


def check_backbones(options: TransferOptions) -> None:
    """Make sure that from scratch and from an encoder the same network is trained."""
    unused = [word for name in ("--data", "--labels", "--folds") for word in (name, "unused")]
    backbone = read_preset(ClassifierOptions, options.classifier, *unused, *options.changes).backbone
    for preset in options.presets:
        other = read_preset(VocoOptions, voco_preset(preset), *unused[:2], *options.changes).backbone
        if other != backbone:
            raise UserError(f"preset {preset} trains {other}, {options.classifier} {backbone}")


def plan_pretraining(options: TransferOptions) -> dict[tuple[Start, int], Piece]:
    """Every pre-training, seed by seed, so that an unfinished study compares like with like."""
    return {
        (start, seed): pretraining(options.work, start, seed, options.precision, *options.changes)
        for seed in options.seeds
        for start in options.encoders()
    }


def plan_classification(options: TransferOptions) -> dict[tuple[Start, float, int], Piece]:
    """Every training of a classifier, seed by seed."""
    more = (options.precision, options.classifier, *options.changes)
    return {
        (start, share, seed): classification(
            options.work, start.name, start.classifier_source(options.work, seed), share, seed, *more
        )
        for seed in options.seeds
        for share in options.shares
        for start in (*options.plain(), *options.encoders())
    }


def show(options: TransferOptions) -> dict[str, Any]:
    """Print the tables of what is finished; returns the figures.

    Raises:
        UserError: nothing is.
    """
    encoders = plan_pretraining(options)
    finished, missing = split_finished(plan_classification(options))
    if not finished:
        raise UserError(f"no classifier of {options.work} is finished: run --stage classify first")
    found = {}
    for (start, share, seed), piece in finished.items():
        for name, figures in measure(start, piece, encoders.get((start, seed))).items():
            found[name, share, seed] = {"start": name, "labels": share, "seed": seed, **figures}
    rows = list(found.values())
    runs = pd.DataFrame(rows, columns=["start", "labels", "seed", *FIGURES, *COSTS])
    say(f"\n{format_table(mean_rows(runs, ('start', 'labels'), FIGURES, COSTS))}")
    pairs = comparisons(options.plain(), options.encoders())
    gaps = difference_rows(runs, pairs, FIGURES, what="start", within="labels", ahead={"score": -1})
    say(f"\nDifferences, paired by seed\n\n{format_table(gaps)}")
    if missing:
        say(f"\nnot finished yet: {', '.join(missing)}")
    return {"missing": missing, "runs": rows}


def measure(start: Start, piece: Piece, encoder: Piece | None) -> dict[str, dict[str, Any]]:
    """Figures and costs of a finished classifier, and of the prior of its training labels, by name."""
    training, truth, predicted = read_predictions(piece)
    costs: dict[str, Any] = {"patients": len(training)}
    for what, maker in (("classifier", piece), ("encoder", encoder)):
        if maker is not None and maker.is_finished:
            record = maker.read_record()
            costs |= {f"{what}_seconds": record["seconds"], f"{what}_steps": record["steps"]}
    prior = constant(weight_aware_prior(training), truth.patient_id)
    return {
        start.name: compute_figures(truth, predicted) | costs,
        PRIOR: compute_figures(truth, prior) | {"patients": len(training)},
    }


def compute_figures(truth: pd.DataFrame, predicted: pd.DataFrame) -> dict[str, float]:
    classes = class_metrics(truth, predicted)
    injury_map = class_means(classes, injuries_only=True)["map"]
    return {"score": score(truth, predicted).score, **class_means(classes), "injury_map": injury_map}


def comparisons(plain: Sequence[Start], encoders: Sequence[Start]) -> list[tuple[str, str]]:
    """Pairs of starts to compare.

    Each start without an encoder with the prior, and with the first of them; every encoder with those, with
    the first encoder, and with the one of its preset and first weights that saw the fewest patients.
    """
    pairs = [(start, plain[0]) for start in plain[1:]]
    pairs += [(start, other) for start in encoders for other in (*plain, encoders[0])]
    for start in encoders:
        alike = [replace(other, unlabelled=0) == replace(start, unlabelled=0) for other in encoders]
        pairs.append((start, min(compress(encoders, alike), key=lambda other: other.unlabelled)))
    names = [(first.name, other.name) for first, other in dict.fromkeys(pairs) if first != other]
    return [*((start.name, PRIOR) for start in plain), *names]


if __name__ == "__main__":
    run_main(main, TransferOptions)
