"""Evaluate a pre-training run, or any encoder, on volumes that it was not trained on.

    python -m src.probe --data data/heldout --run runs/voco/v2 --json v2.json
    python -m src.probe --data data/heldout --encoder encoder.safetensors --json encoder.json
    python -m src.probe --data data/heldout --encoder none --backbone efficientnetv2_rw_s --json random.json

`placing` is the share of random crops whose most similar base is the one that they overlap most, among the
bases of their own volume (intra) and of other patients' (cross: the one to trust), in a geometry that all
methods share (standard) and, for --run, in its own. `probe` measures information in frozen features: the
organ at the centre of a tile, and the height of a slice. `low` and `high` are 95 % intervals over patients.
With fewer than five patients they resample draws of crops and blocks of slices, and are valid for these
patients only. The JSON file also holds the figures of each patient.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from src.core.config import check_range, parse_options, plain_options
from src.core.errors import exit_on_user_error
from src.core.files import require_writable, write_json
from src.core.log import say, warn
from src.data.doubtful import is_doubtful
from src.probe.options import NetworkOptions

if TYPE_CHECKING:
    from src.probe.estimates import Estimate
    from src.probe.frozen import FrozenNet, HeldOut


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(NetworkOptions):
    """Options of `python -m src.probe`."""

    data: Path
    """Prepared data set that the network was not trained on."""

    patients: int | None = None
    """Number of patients to use, from the first on; default: all."""

    json: Path | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patients is not None:
            check_range(self, "patients", at_least=1)


def main(argv: list[str] | None = None) -> None:
    """Read the options, measure, print the table."""
    options = parse_options(ProbeOptions, argv, prog="python -m src.probe", description=__doc__)
    if options.json:
        require_writable(options.json)
    # imported here, so that --help and errors in options do not wait for torch
    from src.probe.estimates import format_estimates, plain_estimates
    from src.probe.frozen import HeldOut, load_network

    net = load_network(options)
    held_out = HeldOut.open(options.data, net.windows, options.patients, net.neighbours)
    say(f"weights: {net.weights}; {len(held_out.series)} series of {held_out.patients} patients")
    if doubtful := int(is_doubtful(held_out.dataset.series).sum()):
        say(f"doubtful series: {doubtful}, not measured (reasons in series.csv)")
    warn_of_seen(options, held_out.series)
    start = time.monotonic()
    estimates, absent = measure(net, held_out, options.seed)
    say(f"\n{format_estimates(estimates)}\n")
    for name, reason in absent.items():
        say(f"{name} cannot be measured: {reason}")
    say(f"{time.monotonic() - start:.0f} s")
    if options.json:
        content = plain_options(options) | {"weights": net.weights}
        del content["json"]
        content |= {"series": len(held_out.series), "patients": held_out.patients}
        figures = plain_estimates(estimates)
        write_json(content | {"figures": figures, "absent": absent}, options.json)


def measure(net: "FrozenNet", held_out: "HeldOut", seed: int) -> tuple[dict[str, "Estimate"], dict[str, str]]:
    """Measure placing, also in the geometry of the network's run if it has one, and both probes.

    Returns:
        Estimates by name, such as `placing/standard/cross/projection`, `probe/organ/logistic` or
        `probe/z_position/ridge/r2`, and the reason for each one that cannot be measured.
    """
    from src.probe.linear import height_estimates, organ_estimates
    from src.probe.placing import embed_series, own_sampler, placing_estimates, standard_sampler
    from src.probe.tiles import collect

    patient = held_out.series["patient_id"].to_numpy(dtype=str)
    estimates: dict[str, Estimate] = {}
    absent: dict[str, str] = {}
    samplers = {"standard": standard_sampler(net, held_out, seed)}
    if net.run:
        samplers["own"] = own_sampler(net, held_out, seed)
    for name, sample in samplers.items():
        placed = embed_series(net, sample, len(patient), name)
        estimates |= _prefixed(f"placing/{name}", placing_estimates(placed, patient, seed))
        if held_out.patients < 2:
            absent[f"placing/{name}/cross"] = "a single patient"
    tiles, slices = collect(net, held_out, seed)
    for found, missing in (organ_estimates(tiles, seed), height_estimates(slices, seed)):
        estimates |= _prefixed("probe", found)
        absent |= _prefixed("probe", missing)
    return estimates, absent


def warn_of_seen(options: NetworkOptions, series: pd.DataFrame) -> None:
    """Warn of held-out patients that the network was trained on, because results are then optimistic.

    The patients of a run are in its patients.csv, those of an encoder file in its metadata.
    """
    from src.nn.first_weights import patients_seen_by

    if options.run is None:
        seen = patients_seen_by(options.encoder)
    else:
        path = options.run / "patients.csv"
        try:
            seen = pd.read_csv(path, dtype=str)["patient_id"]
        except (OSError, KeyError, ValueError):
            warn(f"{path} cannot be read: whether the run has seen these patients is unknown")
            return
    patients = series["patient_id"].drop_duplicates()
    known = patients[patients.isin(seen)]
    if len(known):
        warn(
            f"the network has seen {len(known)} of {len(patients)} patients ({', '.join(known[:3])}): "
            "the figures are optimistic"
        )


def _prefixed(prefix: str, values: dict) -> dict:
    return {f"{prefix}/{name}": value for name, value in values.items()}


if __name__ == "__main__":
    with exit_on_user_error():
        main()
