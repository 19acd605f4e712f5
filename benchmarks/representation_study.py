"""Does pre-training learn, and is the representation better? Every method, several seeds, volumes never seen.

    python benchmarks/representation_study.py --work data/study --json representation.json
    python benchmarks/representation_study.py --work data/study --stage evaluate table --sets data/real

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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness import run_main
from joblib import Parallel, delayed
from study import Piece, StudyOptions, make_all, run_stages
from study_sets import Start, StudyFolders, make_data, pretraining
from study_table import format_spread, markdown, spread

from src.core.errors import UserError
from src.core.files import write_json
from src.core.log import say
from src.nn.training import load_checkpoint
from src.probe.__main__ import measure
from src.probe.frozen import HeldOut, load_run

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
class RepresentationOptions(StudyOptions):
    stage: tuple[Literal["data", "pretrain", "evaluate", "table"], ...] = STAGES
    """stages to run, always in the order data, pretrain, evaluate, table"""
    presets: tuple[str, ...] = ("v2_small", "v1_small", "plus_small", "3d_small")
    """methods: names of presets in configs/voco, or paths; the first is the one the others are compared to"""
    seconds_of: str = "plus_small"
    """preset whose time the others get in the comparison at equal seconds"""
    unlabelled: int = 400
    """patients to pre-train on"""
    sets: tuple[Path, ...] = ()
    """further prepared sets to measure on, such as the one of real_ct.py"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """one run of everything each"""
    size: int = 144
    """side of the prepared images in pixels"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seconds_of not in self.presets:
            raise ValueError(f"--seconds-of {self.seconds_of} is not among --presets")
        if not self.seeds or min(self.seeds) < 0 or self.unlabelled < 1:
            raise ValueError("--seeds must be at least 0, --unlabelled at least 1")


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
        net = load_run(self.run, self.seed if self.is_random else None)
        figures, absent = measure(net, HeldOut.open(self.data, net.options.windows), self.seed)
        named = {name: asdict(figure) for name, figure in figures.items()}
        write_json({"encoder": digest, "figures": named, "absent": absent}, path)

    def read(self, work: Path) -> dict[str, Any] | None:
        path = self.path(work)
        return json.loads(path.read_text(encoding="utf-8"))["figures"] if path.exists() else None


def main(options: RepresentationOptions) -> dict[str, Any] | None:
    folders = StudyFolders.find(options.work, ())
    stages = {
        "data": lambda: make_data(folders, options.size),
        "pretrain": lambda: pretrain(options, folders),
        "evaluate": lambda: evaluate(options, plan_measurements(options, folders)),
        "table": lambda: show(options, plan_measurements(options, folders)),
    }
    return run_stages(options, stages)


def pretrain(options: RepresentationOptions, folders: StudyFolders) -> None:
    equal_steps = plan_equal_steps(options, folders)
    make_all("pretrain", equal_steps, options.jobs)
    make_all("pretrain", plan_equal_seconds(options, equal_steps), options.jobs)


def plan_equal_steps(options: RepresentationOptions, folders: StudyFolders) -> dict[tuple[str, int], Piece]:
    """A piece for each preset and seed, seed by seed."""
    return {
        (preset, seed): pretraining(
            folders, Start(Path(preset).stem, options.unlabelled), preset, seed, options.precision
        )
        for seed in options.seeds
        for preset in options.presets
    }


def plan_equal_seconds(
    options: RepresentationOptions, equal_steps: dict[tuple[str, int], Piece]
) -> dict[tuple[str, int], Piece]:
    """The other presets with as many steps as take the mean time of `seconds_of`.

    Raises:
        UserError: the runs at equal steps, which tell how long a step takes, are not finished.
    """
    missing = [piece.folder.name for piece in equal_steps.values() if not piece.is_finished]
    if missing:
        raise UserError(f"{missing[0]} is not finished: run --stage pretrain first")
    seconds = {
        preset: sum(training_seconds(equal_steps[preset, seed]) for seed in options.seeds)
        for preset in options.presets
    }
    pieces = {}
    for (preset, seed), piece in equal_steps.items():
        if preset == options.seconds_of:
            continue
        steps = max(1, round(piece.options.steps * seconds[options.seconds_of] / seconds[preset]))
        output = piece.folder.with_name(f"{Path(preset).stem}-{options.unlabelled}t-s{seed}")
        pieces[preset, seed] = replace(piece, options=replace(piece.options, steps=steps, output=output))
    return pieces


def training_seconds(piece: Piece) -> float:
    """Time of the steps alone, those before a resumption included."""
    return load_checkpoint(piece.folder / "last.pt")["seconds"]


def plan_measurements(options: RepresentationOptions, folders: StudyFolders) -> list[Measurement]:
    """Every network on every set; random weights once for each backbone."""
    equal_steps = plan_equal_steps(options, folders)
    rows: list[tuple[str, int, Path, bool]] = []
    backbones = {piece.options.backbone: preset for (preset, _), piece in reversed(equal_steps.items())}
    for (preset, seed), piece in equal_steps.items():
        if backbones[piece.options.backbone] == preset:
            rows.append((f"random weights, {piece.options.backbone}", seed, piece.folder, True))
    rows += [(Path(preset).stem, seed, piece.folder, False) for (preset, seed), piece in equal_steps.items()]
    rows += [
        (f"{Path(preset).stem}, equal seconds", seed, piece.folder, False)
        for (preset, seed), piece in plan_equal_seconds(options, equal_steps).items()
    ]
    return [
        Measurement(method, seed, run, data, is_random)
        for data in (folders.prepared("probe"), *options.sets)
        for method, seed, run, is_random in rows
    ]


def evaluate(options: RepresentationOptions, planned: Sequence[Measurement]) -> None:
    """Make every measurement that can be made."""
    ready = [each for each in planned if (each.run / "encoder.safetensors").is_file()]
    say(f"evaluate: {len(planned)} measurements, {len(planned) - len(ready)} lack their encoder")
    Parallel(n_jobs=options.jobs)(delayed(Measurement.make)(each, options.work) for each in ready)


def show(options: RepresentationOptions, planned: Sequence[Measurement]) -> dict[str, Any]:
    """Print the tables of what is finished; returns the figures."""
    rows: list[dict[str, Any]] = []
    for data in dict.fromkeys(each.data for each in planned):
        found = [(each, each.read(options.work)) for each in planned if each.data == data]
        found = [(each, figures) for each, figures in found if figures]
        baseline = {
            each.seed: figures for each, figures in found if each.method == Path(options.presets[0]).stem
        }
        means, differences = [], []
        for method in dict.fromkeys(each.method for each, _ in found):
            runs = {each.seed: (each, figures) for each, figures in found if each.method == method}
            means.append(
                {"method": method, "seeds": len(runs), **_costs([each for each, _ in runs.values()])}
            )
            pairs = [(figures, baseline[seed]) for seed, (_, figures) in runs.items() if seed in baseline]
            for name, title in SHOWN.items():
                means[-1][title] = _cell([figures.get(name) for _, figures in runs.values()])
            if method != Path(options.presets[0]).stem:
                gaps = {title: _difference(name, pairs) for name, title in SHOWN.items()}
                differences.append({"method": method, **gaps})
        rows += [
            {"data": data.name, "method": each.method, "seed": each.seed, "figures": figures}
            for each, figures in found
        ]
        say(f"\n{data.name}: mean ± standard deviation over seeds\n\n{markdown(means)}")
        if differences:
            say(f"\nDifferences to {options.presets[0]}, paired by seed\n\n{markdown(differences)}")
        if placing := next((figures[PLACING] for _, figures in found if PLACING in figures), None):
            say(
                "\nCross-patient placing and its 95 % interval over {over}: {trials:,} trials of {patients} "
                "patients, chance {chance:.3f}\n".format_map(placing)
            )
            say(markdown(_intervals(found)))
    return {"runs": rows}


def _intervals(found: Sequence[tuple[Measurement, dict[str, Any]]]) -> list[dict[str, str]]:
    """One row per method: placing across patients with its interval, seed by seed."""
    seeds = dict.fromkeys(each.seed for each, _ in found)
    cells = {
        (each.method, each.seed): _with_interval(figures[PLACING])
        for each, figures in found
        if PLACING in figures
    }
    return [
        {"method": method, **{f"seed {seed}": cells.get((method, seed), "-") for seed in seeds}}
        for method in dict.fromkeys(method for method, _ in cells)
    ]


def _with_interval(figure: dict[str, Any]) -> str:
    low, high = figure["low"], figure["high"]
    return f"{figure['value']:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def _costs(runs: Sequence[Measurement]) -> dict[str, str]:
    if runs[0].is_random:
        return {"steps": "0", "seconds": "-"}
    saved = [load_checkpoint(each.run / "last.pt") for each in runs]
    seconds = sum(content["seconds"] for content in saved) / len(saved)
    return {"steps": str(saved[0]["step"]), "seconds": f"{seconds:.0f}"}


def _cell(figures: Sequence[dict[str, Any] | None]) -> str:
    values = [figure["value"] for figure in figures if figure]
    return format_spread(spread(values), ".3f") if values else "-"


def _difference(name: str, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    values = [
        figures[name]["value"] - base[name]["value"]
        for figures, base in pairs
        if name in figures and name in base
    ]
    return format_spread(spread(values), "+.3f") if values else "-"


if __name__ == "__main__":
    run_main(main, RepresentationOptions)
