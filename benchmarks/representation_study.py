"""What is 2D-VoCo worth on real CT? Pre-training methods, first weights and rivals on one backbone.

    python benchmarks/representation_study.py --work data/representation --ct CT --jobs 2
    python benchmarks/representation_study.py --work data/representation --ct CT --rows plus --seeds 0
    python benchmarks/representation_study.py --table

Every row and seed is a piece of its own: a file in --pieces with its figures, command, seconds and digests of
code and data. Stages keep what is finished, so that the same command continues a study that was killed, and
several processes may work on different rows or seeds of a folder:

    data      12 real series and 100 phantoms to pre-train on, real CT of other patients to measure on, the
              phantoms of transfer_study.py
    pretrain  train_voco.py and the rivals of rivals.py, 700 steps of about 516 tiles of 64 px
    measure   placing, organs and body regions on real CT, by frozen features, also after 100 and 300 steps;
              injuries painted into organs of real CT, by frozen and by fine-tuned features
    classify  train_cls.py on phantoms, from 10 % and from all of the labels
    table     all pieces of --pieces; --table prints it alone

`--ct` is the folder that real_ct.py takes, with series/ (NIfTI) and slices/ (single slices) in it.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import painted_injuries
import study_sets
from harness import run_main
from injury_probe import embed_tiles, measure_injuries, measure_tuned, read_tiles
from joblib import Parallel, delayed
from region_probe import measure_regions
from representation_rows import ALL_ROWS, BACKBONE, ROWS, TILE, WINDOWS, make_data, pretraining
from representation_tables import REAL_CT, show_pieces
from study import Piece, StudyOptions, digest_code, digest_files, make_all, run_stages
from task_probe import predict_task, task_figures

from src.core.config import ROOT
from src.core.errors import UserError
from src.core.files import whole_folder, write_json
from src.core.log import say
from src.probe.__main__ import measure
from src.probe.estimates import plain_estimates
from src.probe.frozen import FrozenNet, HeldOut, load_encoder

STAGES = ("data", "pretrain", "measure", "classify", "table")
PIECES = ROOT / "docs" / "studies" / "representation"
MEASURED_WITH = 0
"""Seed of what is measured by frozen features: the same crops, tiles and resamples for all encoders, so that
differences are paired. Fine-tuning and draws of labels have the seed of the row."""
EARLIER = (100, 300)
"""Steps after which the cheap figures are measured as well, before the last."""
LINEAR_SHARES, TUNED_SHARES = (0.05, 0.25), (0.1, 1.0)
"""Shares of the phantoms' labels for linear models on frozen features, and for whole classifiers."""
CLASSIFIER, TASK_SIZE, TASK_SETS = "configs/cls/study_lite0.yaml", 108, ("train", "test")
CHANGES = ("--lr", "2e-3", "--dropout", "0", "--clip", "5")
"""In place of values of `CLASSIFIER`, with which the loss on the training patients does not fall in 10
epochs, from ImageNet weights and in one window. With these it does."""
PAINTED = "painted"
"""Folder of --work for the examples of painted_injuries.py."""


@dataclass(frozen=True, kw_only=True)
class RepresentationOptions(StudyOptions):
    work: Path = Path("data/representation")
    """folder of data, encoders and classifiers, which are not part of the project"""
    ct: Path | None = None
    """folder of public CT as real_ct.py takes it, with series/ and slices/; needed by data and measure"""
    rows: tuple[str, ...] = tuple(ROWS)
    """names of rows, also ablation-0 to ablation-7"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """seeds of every row; a row that has fewer is made for those"""
    pieces: Path = PIECES
    """folder of the pieces"""
    stage: tuple[Literal["data", "pretrain", "measure", "classify", "table"], ...] = STAGES
    """stages to run, always in this order"""
    table: bool = False
    """print the tables of --pieces and do nothing else"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.rows:
            if name not in ALL_ROWS:
                raise ValueError(f"--rows has no {name}, only {' '.join(ALL_ROWS)}")

    def planned(self) -> list[tuple[str, int]]:
        """Rows and seeds, seed by seed, so that an unfinished study compares like with like."""
        return [(row, seed) for seed in self.seeds for row in self.rows if seed in ALL_ROWS[row].seeds]


def main(options: RepresentationOptions) -> dict[str, Any] | None:
    if options.table:
        return show_pieces(options.pieces)
    stages = {
        "data": lambda: prepare_sets(options),
        "pretrain": lambda: make_all("pretrain", plan_pretraining(options), options.jobs),
        "measure": lambda: measure_all(options),
        "classify": lambda: classify(options),
        "table": lambda: show_pieces(options.pieces),
    }
    return run_stages(options, stages, alone=["data"])


def prepare_sets(options: RepresentationOptions) -> None:
    make_data(options.work, require_ct(options))
    if not (options.work / PAINTED).is_dir():
        with whole_folder(options.work / PAINTED) as partial:
            painted_injuries.main(["--ct", str(options.ct), "--output", str(partial)])
    study_sets.make_data(options.work, TASK_SIZE, TASK_SETS)


def require_ct(options: RepresentationOptions) -> Path:
    if options.ct is None or not (options.ct / "series").is_dir():
        raise UserError(
            "--ct must be a folder with chaos, totalsegmentator, rsna_processed, series and slices"
        )
    return options.ct


def plan_pretraining(options: RepresentationOptions) -> dict[tuple[str, int], Piece]:
    return {
        (name, seed): pretraining(options.work, name, seed, options.precision)
        for name, seed in options.planned()
        if ALL_ROWS[name].preset
    }


def measure_all(options: RepresentationOptions) -> None:
    """Measure every encoder that is there, and write its piece."""
    planned = options.planned()
    ready = [(name, seed) for name, seed in planned if is_ready(options, name, seed)]
    say(f"measure: {len(planned)} pieces, {len(planned) - len(ready)} lack their encoder")
    Parallel(n_jobs=options.jobs)(delayed(measure_piece)(options, *each) for each in ready)


def is_ready(options: RepresentationOptions, name: str, seed: int) -> bool:
    return not ALL_ROWS[name].preset or plan_pretraining(options)[name, seed].is_finished


def measure_piece(options: RepresentationOptions, name: str, seed: int) -> None:
    """Measure an encoder and write its piece, unless that has the figures of these weights."""
    row, path = ALL_ROWS[name], piece_path(options, name, seed)
    source = row.source(options.work, name, seed)
    content = read_piece(path)
    digest = digest_files([source]) if isinstance(source, Path) else source
    if content.get("encoder") == digest:
        return
    started = time.perf_counter()
    figures = measure_encoder(options, source, seed, is_whole=name in ROWS)
    earlier = {
        str(steps): values(measure_encoder(options, earlier_path, seed, is_whole=False))
        for steps in EARLIER
        if isinstance(source, Path)
        and steps < row.steps
        and (earlier_path := source.with_name(f"encoder_{steps:07d}.safetensors")).is_file()
    }
    training = (
        plan_pretraining(options)[name, seed].read_record() if row.preset else {"steps": 0, "seconds": 0}
    )
    write_json(
        {
            **about(options, name, seed),
            "encoder": digest,
            "steps": training["steps"],
            "seconds": {"pretrain": training["seconds"], "measure": time.perf_counter() - started},
            "figures": figures,
            "earlier": earlier,
        },
        path,
    )
    say(f"measured {path.stem}")


def measure_encoder(
    options: RepresentationOptions, source: Path | str, seed: int, *, is_whole: bool
) -> dict[str, Any]:
    """Figures by name, as plain values.

    Args:
        source: an encoder file, or `--first-weights`.
        is_whole: also those that take minutes, which the ablation does without.
    """

    def load() -> FrozenNet:
        return load_encoder(source, WINDOWS, TILE, BACKBONE, seed)

    net = load()
    ct = require_ct(options)
    held_out = HeldOut.open(options.work / "prepared" / "held_out", net.windows)
    estimates, _ = measure(net, held_out, MEASURED_WITH)
    estimates |= measure_regions(net, ct / "slices", MEASURED_WITH)
    tiles = read_tiles(options.work / PAINTED, TILE)
    estimates |= measure_injuries(partial(embed_tiles, net), tiles, MEASURED_WITH)
    if is_whole:
        estimates |= measure_tuned(load, tiles, seed)
    figures = plain_estimates(estimates)
    for name in REAL_CT:
        figures[name]["resampled"] = " ".join(f"{each:.4f}" for each in estimates[name].resampled)
    if is_whole:
        for share, tables in predict_task(net, options.work, LINEAR_SHARES, seed).items():
            figures |= with_share("linear", share, task_figures(*tables))
    return figures


def classify(options: RepresentationOptions) -> None:
    """Train classifiers from every measured encoder, and add their scores to its piece."""
    keys = [key for key in options.planned() if key[0] in ROWS and piece_path(options, *key).is_file()]
    planned = {(*key, share): plan_classifier(options, *key, share) for key in keys for share in TUNED_SHARES}
    make_all("classify", planned, options.jobs)
    for name, seed in keys:
        path = piece_path(options, name, seed)
        content = read_piece(path)
        for share in TUNED_SHARES:
            piece = planned[name, seed, share]
            _, truth, predicted = study_sets.read_predictions(piece)
            content["figures"] |= with_share("tuned", share, task_figures(truth, predicted))
            content["seconds"][f"classify {100 * share:g} %"] = piece.read_record()["seconds"]
        write_json(content, path)


def plan_classifier(options: RepresentationOptions, name: str, seed: int, share: float) -> Piece:
    source = ALL_ROWS[name].source(options.work, name, seed)
    given = (options.precision, CLASSIFIER, "--windows", *WINDOWS, *CHANGES)
    return study_sets.classification(options.work, name, source, share, seed, *given)


def with_share(kind: str, share: float, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Name figures of the task: `task/<kind>/<percent of labels>/<figure>`."""
    return {f"task/{kind}/{100 * share:g}/{name}": figure for name, figure in figures.items()}


def values(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: figure["value"] for name, figure in figures.items()}


def about(options: RepresentationOptions, name: str, seed: int) -> dict[str, Any]:
    """What a piece says about its making."""
    sets = [options.work / "prepared" / each for each in ("real", "phantoms", "held_out")]
    command = f"python benchmarks/representation_study.py --ct CT --rows {name} --seeds {seed}"
    return {
        "row": name,
        "seed": seed,
        "command": command,
        "code": digest_code(),
        "data": digest_files(path for folder in sets for path in folder.rglob("*.png")),
    }


def piece_path(options: RepresentationOptions, name: str, seed: int) -> Path:
    return options.pieces / f"{name}-s{seed}.json"


def read_piece(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


if __name__ == "__main__":
    run_main(main, RepresentationOptions)
