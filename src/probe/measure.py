"""Every figure of a frozen network on a held-out set, by name."""

from dataclasses import replace

import numpy as np

from src.probe.estimates import Figure
from src.probe.frozen import FrozenNet
from src.probe.held_out import HeldOut, standard_crops
from src.probe.linear import height_figures, organ_figures
from src.probe.placing import RANDOM_CROPS, SampleCrops, embed_series, placing_figures
from src.probe.tiles import collect
from src.voco.dataset import open_dataset
from src.voco.options import VocoOptions

SLICES = 8
"""Of a crop in the geometry that all methods share; a 3D network takes as many as it was trained with."""


def measure(net: FrozenNet, held_out: HeldOut, seed: int) -> tuple[dict[str, Figure], dict[str, str]]:
    """Placing in both geometries, and both probes.

    Returns:
        The figures, such as `placing/standard/cross/projection`, `probe/organ/logistic` or
        `probe/z_position/ridge/r2`, and for those that cannot be had why.
    """
    patient = held_out.series["patient_id"].to_numpy(dtype=str)
    figures: dict[str, Figure] = {}
    absent: dict[str, str] = {}
    for name, sample in (
        ("standard", standard_sampler(net, held_out, seed)),
        ("own", own_sampler(net, held_out, seed)),
    ):
        placed = embed_series(net, sample, len(patient), name)
        figures |= _prefixed(f"placing/{name}", placing_figures(placed, patient, seed))
        if held_out.patients < 2:
            absent[f"placing/{name}/cross"] = "a single patient"
    tiles, slices = collect(net, held_out, seed)
    for found, missing in (organ_figures(tiles, seed), height_figures(slices, seed)):
        figures |= _prefixed("probe", found)
        absent |= _prefixed("probe", missing)
    return figures, absent


def standard_sampler(net: FrozenNet, held_out: HeldOut, seed: int) -> SampleCrops:
    """Crops of the 3 x 3 grid on whole slices of the middle half of a series."""
    slices = net.options.slices if net.is_volume else SLICES

    def sample(row: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
        return standard_crops(
            held_out, row, draw, tile=net.options.tile, slices=slices, random_crops=RANDOM_CROPS, seed=seed
        )

    return sample


def own_sampler(net: FrozenNet, held_out: HeldOut, seed: int) -> SampleCrops:
    """Crops as the run itself draws them, appearance and turns left out.

    With several bases along the body, cross-patient labels hold only as far as the scans cover the same.
    """
    dataset = open_dataset(plain_geometry(net.options, str(held_out.dataset.folder), seed))
    rows = held_out.series.index  # of all usable series, the order of the data set

    def sample(row: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
        crops = dataset[draw, int(rows[row])]
        return crops.tiles.numpy(), crops.label.numpy()

    return sample


def plain_geometry(options: VocoOptions, data: str, seed: int) -> VocoOptions:
    """The options of a run for the held-out set, without what changes crops other than by their place."""
    return replace(
        options,
        data=(data,),
        set_windows=(),
        repeat=(),
        random_crops=RANDOM_CROPS,
        crop_flip=0.0,
        crop_rotate90=0.0,
        crop_shift=0.0,
        appearance=0.0,
        seed=seed,
    )


def _prefixed(prefix: str, values: dict) -> dict:
    return {f"{prefix}/{name}": value for name, value in values.items()}
