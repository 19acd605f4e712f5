"""Does pre-training learn, and is the representation better? Every method, several seeds, volumes never seen.

    python benchmarks/presets_study.py --work data/study --json presets.json
    python benchmarks/presets_study.py --work data/study --stage evaluate table --sets data/real

Stages, each of which keeps what is finished, so that the same command continues a study that was killed:

    data      the phantoms of transfer_study.py, which shares its folder and its encoders with this study
    pretrain  train_voco.py for each preset and seed at the preset's steps (equal steps), and again with as
              many steps as take as long as --seconds-of does (equal seconds)
    evaluate  placing and probes of src/probe on the phantoms with segmentations and on --sets, of
              every encoder and of random weights
    table     mean and spread over seeds, and differences to the first preset, paired by seed
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from harness import run_main
from joblib import Parallel, delayed
from study import Piece, StudyOptions, make_all, run_stages
from study_sets import SIZE, Start, make_data, pretraining
from study_table import difference_rows, mean_rows

from src.core.errors import UserError
from src.core.files import write_json
from src.core.log import format_table, say
from src.nn.training import load_checkpoint
from src.probe.__main__ import measure
from src.probe.estimates import plain_estimates
from src.probe.frozen import HeldOut, load_encoder, load_run

STAGES = ("data", "pretrain", "evaluate", "table")
PLACING = "placing/standard/cross/projection"
SHOWN = {
    PLACING: "cross-patient placing",
    "placing/standard/cross/features": "by features",
    "placing/standard/cross/features_centred": "by centred features",
    "placing/standard/intra/projection": "inside a patient",
    "probe/organ/logistic": "organ, linear",
    "probe/organ/knn": "organ, k-NN",
    "probe/z_position/ridge/r2": "height, R2",
    "probe/z_position/ridge/mae_mm": "height, error mm",
}
"""Figures of the tables; the JSON holds all."""


@dataclass(frozen=True, kw_only=True)
class PresetsOptions(StudyOptions):
    stage: tuple[Literal["data", "pretrain", "evaluate", "table"], ...] = STAGES
    """stages to run, always in this order"""
    presets: tuple[str, ...] = ("v2_small", "v1_small", "plus_small", "3d_small")
    """presets in configs/voco, or paths; the others are compared with the first"""
    seconds_of: str = "plus_small"
    """preset whose time the others get in the comparison at equal seconds"""
    unlabelled: int = 400
    """patients to pre-train on"""
    sets: tuple[Path, ...] = ()
    """further prepared sets to measure on, such as the one of real_ct.py"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """one run of everything each"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds_of not in self.presets:
            raise ValueError(f"--seconds-of {self.seconds_of} is not among --presets")


@dataclass(frozen=True)
class Measurement:
    """One network on one set, measured once and kept."""

    method: str
    """name of the row in the table"""
    seed: int
    run: Path
    data: Path
    is_random: bool = False

    def path(self, work: Path) -> Path:
        weights = "random" if self.is_random else "teacher"
        return work / "figures" / f"{self.run.name}-{weights}-{self.data.name}.json"

    def make(self, work: Path) -> None:
        """Measure, unless that was done on the same weights."""
        digest = hashlib.sha256((self.run / "encoder.safetensors").read_bytes()).hexdigest()
        path = self.path(work)
        if path.exists() and json.loads(path.read_text(encoding="utf-8"))["encoder"] == digest:
            return
        net = load_run(self.run)
        if self.is_random:
            net = load_encoder("none", net.windows, net.tile, net.run.backbone, self.seed)
        held_out = HeldOut.open(self.data, net.windows, neighbours=net.neighbours)
        figures, absent = measure(net, held_out, self.seed)
        write_json({"encoder": digest, "figures": plain_estimates(figures), "absent": absent}, path)

    def read(self, work: Path) -> dict[str, Any] | None:
        """Figures by name, each with `value` and its interval; None if they were not measured."""
        path = self.path(work)
        return json.loads(path.read_text(encoding="utf-8"))["figures"] if path.exists() else None

    def costs(self) -> dict[str, float]:
        """Steps of the pre-training, and the seconds of these steps, those before a resumption included."""
        saved = {} if self.is_random else load_checkpoint(self.run / "last.pt")
        return {"steps": saved.get("step", 0), "seconds": saved.get("seconds")}


def main(options: PresetsOptions) -> dict[str, Any] | None:
    stages = {
        "data": lambda: make_data(options.work, SIZE),
        "pretrain": lambda: pretrain(options),
        "evaluate": lambda: evaluate(options, plan_measurements(options)),
        "table": lambda: show(options, plan_measurements(options)),
    }
    return run_stages(options, stages)


def pretrain(options: PresetsOptions) -> None:
    equal_steps = plan_equal_steps(options)
    make_all("pretrain", equal_steps, options.jobs)
    make_all("pretrain", plan_equal_seconds(options, equal_steps), options.jobs)


def plan_equal_steps(options: PresetsOptions) -> dict[tuple[str, int], Piece]:
    """A piece for each preset and seed, seed by seed."""
    return {
        (preset, seed): pretraining(options.work, Start(preset, options.unlabelled), seed, options.precision)
        for seed in options.seeds
        for preset in options.presets
    }


def plan_equal_seconds(
    options: PresetsOptions, equal_steps: dict[tuple[str, int], Piece]
) -> dict[tuple[str, int], Piece]:
    """The other presets with as many steps as take the mean time of --seconds-of.

    Raises:
        UserError: the runs at equal steps, from which the time of a step is known, are not finished.
    """
    missing = [piece.folder.name for piece in equal_steps.values() if not piece.is_finished]
    if missing:
        raise UserError(f"{missing[0]} is not finished: run --stage pretrain first")
    seconds = dict.fromkeys(options.presets, 0.0)
    for (preset, _), piece in equal_steps.items():
        seconds[preset] += load_checkpoint(piece.folder / "last.pt")["seconds"]
    pieces = {}
    for (preset, seed), piece in equal_steps.items():
        if preset != options.seconds_of:
            steps = max(1, round(piece.options.steps * seconds[options.seconds_of] / seconds[preset]))
            output = piece.folder.with_name(f"{Path(preset).stem}-{options.unlabelled}t-s{seed}")
            longer = replace(piece.options, steps=steps, output=output)
            pieces[preset, seed] = replace(piece, options=longer)
    return pieces


def plan_measurements(options: PresetsOptions) -> list[Measurement]:
    """Every network on every set; random weights once for each backbone."""
    equal_steps = plan_equal_steps(options)
    equal_seconds = plan_equal_seconds(options, equal_steps)
    rows: list[tuple[str, int, Path, bool]] = []
    backbones = {piece.options.backbone: preset for (preset, _), piece in reversed(equal_steps.items())}
    for (preset, seed), piece in equal_steps.items():
        if backbones[piece.options.backbone] == preset:
            rows.append((f"random weights, {piece.options.backbone}", seed, piece.folder, True))
    for pieces, suffix in ((equal_steps, ""), (equal_seconds, ", equal seconds")):
        rows += [
            (Path(name).stem + suffix, seed, each.folder, False) for (name, seed), each in pieces.items()
        ]
    return [
        Measurement(method, seed, run, data, is_random)
        for data in (options.work / "prepared" / "probe", *options.sets)
        for method, seed, run, is_random in rows
    ]


def evaluate(options: PresetsOptions, planned: Sequence[Measurement]) -> None:
    """Make every measurement that can be made."""
    ready = [each for each in planned if (each.run / "encoder.safetensors").is_file()]
    say(f"evaluate: {len(planned)} measurements, {len(planned) - len(ready)} lack their encoder")
    Parallel(n_jobs=options.jobs)(delayed(Measurement.make)(each, options.work) for each in ready)


def show(options: PresetsOptions, planned: Sequence[Measurement]) -> dict[str, Any]:
    """Print the tables of what is finished; returns the figures."""
    found = [(each, figures) for each in planned if (figures := each.read(options.work))]
    keys = ("data", "method", "seed", "steps", "seconds")
    runs = pd.DataFrame(
        [
            {"data": each.data.name, "method": each.method, "seed": each.seed, **each.costs()}
            | {name: figures[name]["value"] for name in SHOWN if name in figures}
            for each, figures in found
        ],
        columns=[*keys, *SHOWN],
    )
    for data, of_data in runs.groupby("data", sort=False):
        means = mean_rows(of_data, ("method",), SHOWN, ("steps", "seconds"))
        say(f"\n{data}: mean ± standard deviation over seeds\n\n{format_table(means)}")
        first = Path(options.presets[0]).stem
        pairs = [(method, first) for method in of_data["method"].unique() if method != first]
        gaps = difference_rows(of_data, pairs, SHOWN, what="method", within="data", ahead={})
        say(f"\nDifferences to {first}, paired by seed\n\n{format_table(gaps)}")
        show_intervals([(each, figures) for each, figures in found if each.data.name == data])
    ids = runs[["data", "method", "seed"]].to_dict("records")
    return {"runs": [row | {"figures": figures} for row, (_, figures) in zip(ids, found, strict=True)]}


def show_intervals(found: Sequence[tuple[Measurement, dict[str, Any]]]) -> None:
    """Print placing across patients with its interval, seed by seed."""
    rows: dict[str, dict[str, str]] = {}
    for each, figures in found:
        if figure := figures.get(PLACING):
            interval = "" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]"
            row = rows.setdefault(each.method, {"method": each.method})
            row[f"seed {each.seed}"] = f"{figure['value']:.3f}{interval}"
            about = "over {over}: {trials:,} trials of {patients} patients, chance {chance:.3f}"
            title = about.format_map(figure)
    if rows:
        say(f"\nCross-patient placing and its 95 % interval {title}\n\n{format_table(list(rows.values()))}")


if __name__ == "__main__":
    run_main(main, PresetsOptions)
