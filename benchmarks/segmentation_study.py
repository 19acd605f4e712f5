"""Do unlabelled scans help organ segmentation? Two sub-networks with few labels, with and without them.

    python benchmarks/segmentation_study.py --work data/seg_study --jobs 2 --json segmentation.json
    python benchmarks/segmentation_study.py --work data/seg_study --stage table

Stages, each of which keeps what is finished, so that the same command continues a study that was killed:

    data     phantoms with a segmentation of every series, prepared at 64 px in three windows: 40
             patients to learn from, 20 others who are scored
    train    train_seg.py for each seed, share of labelled series and method; the series that are not drawn
             are unlabelled, their masks are never read. Each run scores the 20 patients in 3D
    table    Dice, Jaccard, HD95 and ASD of each method, mean and spread over seeds, and differences by seed

Methods: supervised (the same pair without any further term), dual (all terms), and at --ablated dual without
each of its terms, and supervised with verification alone. All of a seed and share get the same labelled
series, each seed others; steps are equal, a run's seconds are those of its steps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from harness import read_preset, run_main
from study import Piece, StudyOptions, make_all, make_phantom, prepare, run_stages, split_finished
from study_table import difference_rows, mean_rows

from src.core.errors import UserError
from src.core.files import write_table
from src.core.log import format_table, say
from src.data.prepared import PreparedDataset
from src.seg.options import SegOptions
from src.seg.volume_scores import summarise

PHANTOMS = {
    "train": "--patients 40 --test-patients 0 --segmentation-rate 1 --seed 5",
    "test": "--patients 20 --test-patients 0 --segmentation-rate 1 --seed 7",
}
PRESET, SIZE = "configs/seg/dual_small.yaml", 64
"""Preset of train_seg.py, and side of the prepared images in pixels."""
METHODS = {
    "supervised": ("--verification", "0", "--pseudo", "0", "--contrast", "0"),
    "dual": (),
    "without verification": ("--verification", "0"),
    "without pseudo-labels": ("--pseudo", "0"),
    "without contrast": ("--contrast", "0"),
    "verification alone": ("--pseudo", "0", "--contrast", "0"),
}
"""What each changes in the preset."""

SCORES = {"dice": "Dice", "jaccard": "Jaccard", "hd95_mm": "HD95 (mm)", "asd_mm": "ASD (mm)"}
COMPARED = {name: SCORES[name] for name in ("dice", "hd95_mm")}


@dataclass(frozen=True, kw_only=True)
class SegStudyOptions(StudyOptions):
    stage: tuple[Literal["data", "train", "table"], ...] = ("data", "train", "table")
    """stages to run, always in this order"""
    shares: tuple[float, ...] = (0.05, 0.1, 0.2)
    """shares of the series that are labelled"""
    ablated: tuple[float, ...] = (0.1,)
    """those of --shares at which all methods are trained, not supervised and dual alone"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """one run of everything each"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(not 0 < share < 1 for share in self.shares):
            raise ValueError("--shares must lie between 0 and 1")
        if set(self.ablated) - set(self.shares):
            raise ValueError("--ablated must be among --shares")

    def cells(self) -> list[tuple[str, float, int]]:
        """Method, share and seed of every run, seed by seed: an unfinished study compares like with like."""
        return [
            (method, share, seed)
            for seed in self.seeds
            for share in self.shares
            for method in METHODS
            if share in self.ablated or method in ("supervised", "dual")
        ]


def main(options: SegStudyOptions) -> dict[str, Any] | None:
    stages = {
        "data": lambda: make_data(options),
        "train": lambda: make_all("train", plan(options), options.jobs),
        "table": lambda: show(options),
    }
    return run_stages(options, stages)


def make_data(options: SegStudyOptions) -> None:
    """Make and prepare the phantoms; what is there is kept."""
    for name, arguments in PHANTOMS.items():
        raw = options.work / f"raw_{name}"
        make_phantom(raw, arguments)
        prepare(raw, options.work / name, SIZE)


def plan(options: SegStudyOptions) -> dict[tuple[str, float, int], Piece]:
    """Every training."""
    sets = [options.work / name for name in PHANTOMS]
    train, test = (PreparedDataset.open(folder) for folder in sets)
    scored = sorted(set(test.series["patient_id"]))
    if set(scored) & set(train.series["patient_id"]):
        raise UserError("a patient of the test phantoms has the name of one to learn from")
    pieces = {}
    for method, share, seed in options.cells():
        labelled = draw_labelled(options.work / "labelled", train, share, seed)
        output = options.work / "runs" / f"{method.replace(' ', '-')}-{share:g}-s{seed}"
        arguments = [
            *("--data", *sets, "--labelled", labelled, "--leave-out", *scored),
            *("--validation", "0", "--output", output),
            *("--seed", str(seed), "--precision", options.precision, *METHODS[method]),
        ]
        run = read_preset(SegOptions, PRESET, *arguments)
        inputs = (labelled, *(folder / "series.csv" for folder in sets))
        pieces[method, share, seed] = Piece(run, inputs)
    return pieces


def draw_labelled(folder: Path, dataset: PreparedDataset, share: float, seed: int) -> Path:
    """A table of a share of the series, each of another patient while there are any; larger shares of a seed
    hold its smaller ones."""
    ids = dataset.series[["patient_id", "series_id"]].sample(frac=1, random_state=seed)
    first = ~ids.duplicated("patient_id")
    ids = pd.concat([ids[first], ids[~first]])
    path = folder / f"{share:g}-s{seed}.csv"
    table = ids.head(max(1, round(share * len(ids)))).reset_index(drop=True)
    if not path.is_file() or not pd.read_csv(path, dtype=str).equals(table.astype(str)):
        write_table(table, path)
    return path


def show(options: SegStudyOptions) -> dict[str, Any]:
    """Print the tables of what is finished; returns the figures.

    Raises:
        UserError: nothing is.
    """
    finished, missing = split_finished(plan(options))
    rows = [
        {"method": method, "share": share, "seed": seed, **read_scores(piece)}
        for (method, share, seed), piece in finished.items()
    ]
    if not rows:
        raise UserError(f"no run of {options.work} is finished: run --stage train first")
    runs = pd.DataFrame(rows)
    means = mean_rows(runs, ("share", "method"), SCORES, ("labelled", "missed", "seconds"))
    say(f"\n{format_table(means)}")
    pairs = [(method, "supervised") for method in METHODS if method != "supervised"]
    ahead = {"dice": 1, "hd95_mm": -1}
    if gaps := difference_rows(runs, pairs, COMPARED, what="method", within="share", ahead=ahead):
        say(f"\nDifferences, paired by seed\n\n{format_table(gaps)}")
    if missing:
        say(f"\nnot finished yet: {', '.join(missing)}")
    return {"missing": missing, "runs": rows}


def read_scores(piece: Piece) -> dict[str, float]:
    """Means over organs of the scored series of a run, the seconds of its steps, its labelled series."""
    rows = pd.read_csv(piece.folder / "scores.csv", dtype={"patient_id": str, "series_id": str})
    mean = summarise(rows).iloc[-1]
    split = pd.read_csv(piece.folder / "split.csv")
    return {
        **{name: float(mean[name]) for name in SCORES},
        "missed": int(mean["missed"]),
        "seconds": float(pd.read_csv(piece.folder / "metrics.csv")["seconds"].iloc[-1]),
        "labelled": int((split["part"] == "labelled").sum()),
    }


if __name__ == "__main__":
    run_main(main, SegStudyOptions)
