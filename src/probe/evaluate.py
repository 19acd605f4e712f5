"""Measure what a pre-training run has learnt, on volumes that it has never seen.

    python -m src.probe.evaluate --data data/heldout --run runs/voco/v2 --json v2.json
    python -m src.probe.evaluate --data data/heldout --run runs/voco/v2 --random-weights --json random.json

`placing` is the share of random crops whose most similar base is the one that they overlap most, among the
bases of their own volume (intra) and of other patients' (cross: the one to trust), in a geometry that all
methods share (standard) and in the run's own. `probe` is what frozen features know: the organ at the centre
of a tile, and the height of a slice. `low` and `high` hold 95 % intervals over patients; of fewer than five
patients, over draws of crops and blocks of slices, and then they speak of these patients alone.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from src.core.config import parse_options
from src.core.errors import exit_on_user_error
from src.core.files import require_writable, write_json
from src.core.log import format_table, say, warn

if TYPE_CHECKING:
    from src.probe.estimates import Figure


@dataclass(frozen=True)
class EvaluateOptions:
    data: Path
    """prepared data set that the run has not seen"""
    run: Path
    """folder of a train_voco.py run, with last.pt"""
    random_weights: bool = False
    """the run's architecture with random weights instead, drawn from --seed"""
    patients: int | None = None
    """use the first so many patients rather than all"""
    seed: int = 0
    """of crops, tiles, halves and resamples; compare runs with the same"""
    json: Path | None = None
    """file for the figures"""

    def __post_init__(self) -> None:
        if self.patients is not None and self.patients < 1:
            raise ValueError(f"option --patients must be at least 1, got {self.patients}")
        if self.seed < 0:
            raise ValueError(f"option --seed must be at least 0, got {self.seed}")


def main(argv: list[str] | None = None) -> None:
    """Read the options, measure, print the table."""
    options = parse_options(EvaluateOptions, argv, prog="python -m src.probe.evaluate", description=__doc__)
    if options.json:
        require_writable(options.json)
    # imported here, so that --help and a wrong option answer before torch is loaded
    from src.probe.frozen import load_run
    from src.probe.held_out import HeldOut
    from src.probe.measure import measure

    net = load_run(options.run, options.seed if options.random_weights else None)
    held_out = HeldOut.open(options.data, net.options.windows, options.patients)
    weights = "random" if options.random_weights else "teacher"
    say(f"{options.run}, {weights} weights: {len(held_out.series)} series of {held_out.patients} patients")
    if not options.random_weights:
        warn_of_seen(options.run, held_out.series)
    start = time.monotonic()
    figures, absent = measure(net, held_out, options.seed)
    say(f"\n{format_figures(figures)}\n")
    for name, reason in absent.items():
        say(f"{name} cannot be had: {reason}")
    say(f"{time.monotonic() - start:.0f} s")
    if options.json:
        content = {"run": str(options.run), "weights": weights, "data": str(options.data)}
        content |= {"series": len(held_out.series), "patients": held_out.patients, "seed": options.seed}
        named = {name: asdict(figure) for name, figure in figures.items()}
        write_json(content | {"figures": named, "absent": absent}, options.json)


def warn_of_seen(run: Path, series: pd.DataFrame) -> None:
    """Say how many held-out patients the run's patients.csv names: the figures would be optimistic."""
    try:
        seen = pd.read_csv(run / "patients.csv", dtype=str)["patient_id"]
    except (OSError, KeyError, ValueError):
        warn(f"{run / 'patients.csv'} cannot be read: whether the run has seen these patients is unknown")
        return
    patients = series["patient_id"].drop_duplicates()
    known = patients[patients.isin(seen)]
    if len(known):
        warn(
            f"the run has seen {len(known)} of {len(patients)} patients ({', '.join(known[:3])}): "
            "the figures are optimistic"
        )


def format_figures(figures: dict[str, "Figure"]) -> str:
    """A row a figure."""
    rows = [{"figure": name, **asdict(figure)} for name, figure in figures.items()]
    return format_table(rows, digits=3)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
