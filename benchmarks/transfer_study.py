"""Does pre-training help the task? CNN-LSTMs from scratch and from encoders, with few and with all labels.

    python benchmarks/transfer_study.py --work data/study --json study.json
    python benchmarks/transfer_study.py --work data/study --stage classify table --jobs 2
    python benchmarks/transfer_study.py --work data/study --raw-folders data/rsna data/more

Stages, each of which keeps what is finished, so that the same command continues a study that was killed:

    data       phantoms (200 labelled patients, 300 further ones that are scored, 400 without labels, 40 with
               segmentations for probes) or --raw-folders, prepared at --size px with three windows
    pretrain   train_voco.py, for each seed: every preset on the most unlabelled patients, those of --scaled
               on fewer as well
    classify   train_cls.py, for each seed and share of labels, from scratch and from each encoder; the last
               epoch's weight average predicts the patients that are scored, who are never trained on
    table      score, mAP, precision and recall of each, mean and spread over seeds, and differences by seed

The labelled and the unlabelled patients of the study are not the same, and no image of a scored patient is
seen in pre-training. A share of the labels is a stratified draw that follows from the seed: all methods get
the same patients, each seed others. Encoder and classifier of a run have the same seed. A piece's seconds are
those of its process; --jobs 2 halves the cores of each.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import run_main
from study import Piece, StudyOptions, make_all, run_stages, split_finished
from study_sets import (
    SCRATCH,
    Start,
    StudyFolders,
    classification,
    make_data,
    pretraining,
    read_classifier,
    read_voco,
)
from study_table import compare, comparisons, format_differences, format_means, measure, summarise

from src.core.errors import UserError
from src.core.log import say

STAGES = ("data", "pretrain", "classify", "table")


@dataclass(frozen=True, kw_only=True)
class TransferOptions(StudyOptions):
    stage: tuple[Literal["data", "pretrain", "classify", "table"], ...] = STAGES
    """stages to run, always in the order data, pretrain, classify, table"""
    raw_folders: tuple[Path, ...] = ()
    """raw data instead of phantoms: a labelled folder (train_images, test_images, train.csv, test_labels.csv)
    and an unlabelled one"""
    size: int = 144
    """side of the prepared images in pixels"""
    presets: tuple[str, ...] = ("v2_small", "plus_small")
    """methods: names of presets in configs/voco, or paths; the first is the one the others are compared to"""
    scaled: tuple[str, ...] = ("plus_small",)
    """which of --presets are pre-trained on every number of --unlabelled, not on the largest alone"""
    unlabelled: tuple[int, ...] = (25, 100, 400)
    """numbers of patients to pre-train on"""
    classifier: str = "configs/cls/study.yaml"
    """preset of train_cls.py"""
    shares: tuple[float, ...] = (0.1, 1.0)
    """shares of the labelled training patients, each one over a whole number"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """one run of everything each"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stage", "presets", "unlabelled", "shares", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"--{name} needs at least one value, and none twice")
        if len(self.raw_folders) not in (0, 2):
            raise ValueError("--raw-folders takes two folders: the labelled data, and the unlabelled")
        if any(not 0 < share <= 1 or abs(1 / share - round(1 / share)) > 1e-6 for share in self.shares):
            raise ValueError("--shares takes 1, 0.5, 0.1 and the like: one over a whole number")
        if min(self.unlabelled) < 1 or min(self.seeds) < 0:
            raise ValueError("--unlabelled must be at least 1, --seeds at least 0")
        unknown = [name for name in self.scaled if name not in self.presets]
        if unknown:
            raise ValueError(f"--scaled {unknown[0]} is not among --presets")
        if len({Path(preset).stem for preset in self.presets}) < len(self.presets):
            raise ValueError("--presets needs a file name of its own for each method")

    def starts(self) -> dict[Start, str]:
        """The encoders of the study and the preset that makes each."""
        most = max(self.unlabelled)
        chosen = {
            preset: sorted(self.unlabelled) if preset in self.scaled else [most] for preset in self.presets
        }
        return {
            Start(Path(preset).stem, patients): preset
            for preset, numbers in chosen.items()
            for patients in numbers
        }


def main(options: TransferOptions) -> dict[str, Any] | None:
    folders = StudyFolders.find(options.work, options.raw_folders)
    check_backbones(options)
    stages = {
        "data": lambda: make_data(folders, options.size),
        "pretrain": lambda: make_all("pretrain", plan_pretraining(options, folders), options.jobs),
        "classify": lambda: make_all("classify", plan_classification(options, folders), options.jobs),
        "table": lambda: show(options, folders),
    }
    return run_stages(options, stages)


def check_backbones(options: TransferOptions) -> None:
    """Make sure that from scratch and from an encoder the same network is trained."""
    anywhere = Path("unused")
    backbone = read_classifier(options.classifier, anywhere, anywhere).backbone
    for preset in options.presets:
        other = read_voco(preset, anywhere, anywhere).backbone
        if other != backbone:
            raise UserError(
                f"preset {preset} trains {other}, {options.classifier} {backbone}: make them agree"
            )


def plan_pretraining(options: TransferOptions, folders: StudyFolders) -> dict[tuple[Start, int], Piece]:
    """Every pre-training, seed by seed, so that an unfinished study compares like with like."""
    return {
        (start, seed): pretraining(folders, start, preset, seed, options.precision)
        for seed in options.seeds
        for start, preset in options.starts().items()
    }


def plan_classification(
    options: TransferOptions, folders: StudyFolders
) -> dict[tuple[Start, float, int], Piece]:
    """Every training of a classifier, seed by seed."""
    return {
        (start, share, seed): classification(
            folders, start, options.classifier, share, seed, options.precision
        )
        for seed in options.seeds
        for share in options.shares
        for start in (SCRATCH, *options.starts())
    }


def show(options: TransferOptions, folders: StudyFolders) -> dict[str, Any]:
    """Print the tables of what is finished; returns the figures.

    Raises:
        UserError: nothing is.
    """
    encoders = plan_pretraining(options, folders)
    finished, missing = split_finished(plan_classification(options, folders))
    runs = {}
    for cell, piece in finished.items():
        start, _, seed = cell
        runs |= measure(piece, cell, encoders.get((start, seed)))
    if not runs:
        raise UserError(f"no classifier of {options.work} is finished: run --stage classify first")
    means, pairs = summarise(runs), comparisons((SCRATCH, *options.starts()))
    differences = compare(runs, pairs)
    say(f"\n{format_means(means)}")
    say(f"\nDifferences, paired by seed\n\n{format_differences(differences)}")
    if missing:
        say(f"\nnot finished yet: {', '.join(missing)}")
    rows = [
        {"start": start.method, "unlabelled": start.unlabelled, "labels": share, "seed": seed, **run}
        for (start, share, seed), run in runs.items()
    ]
    return {"missing": missing, "runs": rows, "means": means, "differences": differences}


if __name__ == "__main__":
    run_main(main, TransferOptions)
