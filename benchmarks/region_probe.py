"""Body region of single CT slices from frozen features of any encoder, each patient by a model of the others.

    python benchmarks/region_probe.py --slices ../shared/data/ct/slices --encoder package \
        --backbone tf_efficientnet_lite0

The slices are of many patients and scanners (TCGA-LUAD and -LUSC, COVID-19-NY-SBU), labelled thorax, lung
base, abdomen or pelvis. Exact copies and unsure labels are excluded. Patients of TCGA with an even number are
for choices during development; the other patients of TCGA and all of SBU are the test. Figures of either
group come from models that are fitted on all patients of both collections but the measured one. Few slices
show the lung base and the pelvis: the accuracy depends on each of them, the AUC less.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from harness import BenchOptions, run_main
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from src.core.errors import UserError
from src.core.log import say
from src.ct.windows import apply_windows, get_windows
from src.probe.estimates import Estimate, format_estimates, plain_estimates
from src.probe.frozen import GRID, FrozenNet, load_network
from src.probe.linear import CLASSIFIERS
from src.probe.options import NetworkOptions
from src.probe.pooling import accuracy_estimate, auc_estimate
from src.probe.tiles import slice_features
from src.voco.canvas import resize_plane

FILES = {"tcga": "tcga_lung_100.npz", "sbu": "covid19_ny_sbu_20.npz"}
GROUPS = ("development", "test")


@dataclass(frozen=True, kw_only=True)
class RegionOptions(NetworkOptions, BenchOptions):
    slices: Path
    """folder with tcga_lung_100.npz and covid19_ny_sbu_20.npz"""
    groups: tuple[Literal["development", "test"], ...] = ("development",)
    """patients to measure; the test is for an encoder that is finished"""


@dataclass(frozen=True)
class RegionSlices:
    """N labelled slices."""

    hu: np.ndarray
    """int16 (N, H, W)"""
    region: np.ndarray
    """(N,) name of the body region"""
    patient: np.ndarray
    """(N,) collection and number of the patient"""
    group: np.ndarray
    """(N,) development or test"""

    @property
    def regions(self) -> np.ndarray:
        """Names of all regions, in alphabetical order."""
        return np.unique(self.region)


def main(options: RegionOptions) -> dict[str, Any]:
    net = load_network(options)
    say(f"weights: {net.weights}")
    start = time.perf_counter()
    figures = measure_regions(net, options.slices, options.seed, options.groups)
    seconds = time.perf_counter() - start
    say(f"\n{format_estimates(figures)}\n\n{seconds:.0f} s")
    return {"weights": net.weights, "seconds": seconds, "figures": plain_estimates(figures)}


def measure_regions(
    net: FrozenNet, folder: Path, seed: int, groups: tuple[str, ...] = GROUPS
) -> dict[str, Estimate]:
    """Measure how well the body region of slices is predicted, by group of patients.

    Returns:
        `region/<group>`, the balanced accuracy, and `region_auc/<group>`, the mean AUC of each region against
        the others.

    Raises:
        UserError: no such files in `folder`.
    """
    slices = read_slices(folder)
    features = slice_features(net, network_input(net, slices.hu))
    estimates = {}
    for group in groups:
        tested = slices.group == group
        patient = slices.patient[tested]
        score = score_regions(features, slices, np.unique(patient))[tested]  # (M, regions)
        is_region = slices.region[tested, None] == slices.regions
        has_region = is_region.any(axis=0)
        where = (patient, np.arange(len(patient)))  # each slice its own block
        estimates[f"region/{group}"] = accuracy_estimate(
            score.argmax(axis=1), is_region.argmax(axis=1), *where, seed
        )
        estimates[f"region_auc/{group}"] = auc_estimate(
            score[:, has_region], is_region[:, has_region], *where, seed
        )
    return estimates


def read_slices(folder: Path) -> RegionSlices:
    """Read both collections without copies and unsure labels.

    Raises:
        UserError: a file is missing.
    """
    parts = []
    for collection, name in FILES.items():
        if not (folder / name).is_file():
            raise UserError(f"no {name} in {folder} (--slices)")
        with np.load(folder / name, allow_pickle=False) as arrays:
            kept = ~arrays["unsure"]
            if "duplicate_of" in arrays:
                kept &= arrays["duplicate_of"] < 0
            number = arrays["patient"][kept]
            is_development = (number % 2 == 0) & (collection == "tcga")
            patient = np.char.add(f"{collection} ", number.astype(str))
            group = np.where(is_development, *GROUPS)
            parts.append((arrays["hu"][kept], arrays["region"][kept], patient, group))
    return RegionSlices(*map(np.concatenate, zip(*parts, strict=True)))


def network_input(net: FrozenNet, hu: np.ndarray) -> np.ndarray:
    """Window and resize slices like those of a prepared set: uint8 (N, T, 3 tiles, 3 tiles, C).

    A slice is its own neighbour, and every slice of a 3D network's input.
    """
    windows, depth = get_windows(net.windows), net.slices if net.is_volume else 1
    images = np.stack([resize_plane(apply_windows(image, windows), GRID * net.tile) for image in hu])
    images = np.tile(images, net.neighbours.count)  # (N, side, side, C)
    return np.broadcast_to(images[:, None], (len(images), depth, *images.shape[1:]))


def score_regions(features: np.ndarray, slices: RegionSlices, patients: np.ndarray) -> np.ndarray:
    """Probabilities (N, regions) for slices of `patients`, by models of all other patients; the rest is 0.

    Regions are weighted equally instead of thinned out to the rarest, which has few slices.
    """
    score = np.zeros((len(features), len(slices.regions)))
    for patient in patients:
        tested = slices.patient == patient
        logistic = CLASSIFIERS["logistic"](len(tested)).set_params(class_weight="balanced")
        model = make_pipeline(StandardScaler(), logistic).fit(features[~tested], slices.region[~tested])
        columns = np.searchsorted(slices.regions, model.classes_)
        score[np.ix_(tested, columns)] = model.predict_proba(features[tested])
    return score


if __name__ == "__main__":
    run_main(main, RegionOptions)
