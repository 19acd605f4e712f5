"""The encoders that the representation study compares: methods, first weights, geometry and data."""

from dataclasses import dataclass
from pathlib import Path

import real_ct
from harness import read_preset
from organ_encoder import OrganOptions
from rivals import RivalOptions
from study import Piece, make_phantom, prepare
from study_sets import ENCODER

from src.voco.options import VocoOptions

BACKBONE = "tf_efficientnet_lite0"
"""The largest backbone whose ImageNet weights come in a package: the study needs no network."""
WINDOWS = ("soft",)
TILE, BATCH = 64, 12
STEPS, ABLATION_STEPS = 700, 300
SEEDS, ABLATION_SEEDS = (0, 1, 2), (0, 1)
SIZE = 192
"""Side of the prepared images in pixels, of which crops are cut."""
REAL_VISITS = 8
"""Visits of an epoch to each real series: 96 of 231, beside the 135 series of 100 phantoms."""
PHANTOM = "--patients 100 --test-patients 0 --seed 4"

COMMON = (
    *("--backbone", BACKBONE, "--windows", *WINDOWS, "--tile", str(TILE), "--batch", str(BATCH)),
    *("--log-every", "50", "--save-every", "100", "--keep-every", "100", "--workers", "0"),
    *("--execution", "compile"),  # faster on a CPU as well
)
SEGMENTATION = (
    *("--backbones", BACKBONE, "test_resnet", "--decoder-width", "0.25", "--windows", *WINDOWS),
    *("--slices", "1", "--validation", "0"),
    *("--batch", "28", "--unlabelled-batch", "28", "--ema-decay", "0.99", "--score-every", "0"),
    *("--save-every", "100", "--workers", "0", "--tile", str(TILE)),
)
"""56 slices of `SIZE` px a step: 504 tiles. The second network is small, it corrects the pseudo-labels."""
V2 = ("--slices", "4")
"""11 crops of 4 slices, for as many tiles a step as `plus` has: 528 and 516."""
SIMCLR = ("--objective", "simclr", "--projection", "128")
"""Projections as wide as the paper's."""
FROM_RANDOM = ("--lr", "1e-3")
"""At the presets' 1e-4 the loss hardly falls in 700 steps."""
ONLY_STATISTICS = ("--lr", "1e-12", "--momentum", "0.9")
"""Weights stay, in float32; running means and variances of BatchNorms become those of the tiles."""


@dataclass(frozen=True)
class Row:
    """An encoder of the tables."""

    title: str
    preset: str = ""
    """in configs/; none without pre-training"""
    first_weights: str = "package"
    """ImageNet weights from a package, or none"""
    changes: tuple[str, ...] = ()
    """options that replace those of the preset"""
    method: str = ""
    """a rival's: of rivals.py on the crops of the preset, or organs"""
    seeds: tuple[int, ...] = SEEDS
    steps: int = STEPS

    def source(self, work: Path, name: str, seed: int) -> Path | str:
        """The encoder of the row, or `--first-weights` without pre-training."""
        return work / "encoders" / f"{name}-s{seed}" / ENCODER if self.preset else self.first_weights


ROWS = {
    "random": Row("random weights", first_weights="none"),
    "imagenet": Row("ImageNet"),
    "imagenet-ct": Row("ImageNet, batch statistics of CT", "voco/plus", changes=ONLY_STATISTICS, steps=100),
    "v2": Row("`v2` from ImageNet", "voco/v2", changes=V2),
    "plus": Row("`plus` from ImageNet", "voco/plus"),
    "simclr": Row("SimCLR from ImageNet", "voco/plus", changes=SIMCLR),
    "byol": Row("BYOL from ImageNet", "voco/plus", method="byol"),
    "position": Row("position by regression, from ImageNet", "voco/plus", method="position"),
    "masked": Row("masked modelling from ImageNet", "voco/plus", method="masked"),
    "v2-random": Row("`v2` from random weights", "voco/v2", "none", (*V2, *FROM_RANDOM)),
    "plus-random": Row("`plus` from random weights", "voco/plus", "none", FROM_RANDOM),
    "v1": Row("`v1` from ImageNet", "voco/v1", changes=("--batch", "4", "--slices", "7"), seeds=(0,)),
    "organs": Row("organ masks of phantoms, from ImageNet", "seg/dual", method="organs", seeds=(0,)),
}
"""Rows of the main table, by name."""

_WHOLE = ("--extent", "whole", "--depth", "96", "--jitter", "0.125")
_SINGLE = (*_WHOLE, "--slices", "1", "--random-crops", "34")
_CHANGED = (*_SINGLE, "--appearance", "0.5")
_SLOWER = (*_CHANGED, "--momentum", "0.99", "--dropout", "0")
_HEIGHTS = (*_SLOWER, "--grid-z", "3", "--random-crops", "16")
_CHOICE = (*_HEIGHTS, "--objective", "softmax", "--inter-volume", "false")
_ALL = (*_CHOICE, "--inter-volume", "true")
ABLATION = {
    f"ablation-{number}": Row(title, "voco/v2", changes=changes, seeds=ABLATION_SEEDS, steps=ABLATION_STEPS)
    for number, (title, changes) in enumerate(
        (
            ("`v2`", V2),
            ("slabs and bases vary: the whole series, `--jitter`", (*V2, *_WHOLE)),
            ("43 crops of one slice, not 11 crops of four", _SINGLE),
            ("changes of appearance", _CHANGED),
            ("slower teacher, no dropout", _SLOWER),
            ("bases at three heights: a volume shows up to 11 slices", _HEIGHTS),
            ("cross-entropy in both directions, inside the volume only", _CHOICE),
            ("all other patients: `plus`", _ALL),
        )
    )
}
"""`v2` turned into `plus`, one change after the other; each row has those above it."""

ALL_ROWS = ROWS | ABLATION


def make_data(work: Path, ct: Path) -> None:
    """Prepare real series and phantoms to pre-train on, and real CT to measure on; what is there is kept."""
    make_phantom(work / "raw_phantoms", PHANTOM)
    for source, name in ((work / "raw_phantoms", "phantoms"), (ct / "series", "real")):
        prepare(source, work / "prepared" / name, SIZE, "--windows", *WINDOWS)
    if not (work / "prepared" / "held_out" / "series.csv").is_file():
        output = work / "prepared" / "held_out"
        real_ct.main(["--ct", str(ct), "--output", str(output), "--size", str(SIZE)])


def pretraining(work: Path, name: str, seed: int, precision: str) -> Piece:
    """The pre-training of a row of `ALL_ROWS`."""
    row = ALL_ROWS[name]
    sets = [work / "prepared" / each for each in ("real", "phantoms")]
    given = [
        *("--data", *sets, "--repeat", str(REAL_VISITS), "1", "--cache", work / "cache"),
        *("--output", row.source(work, name, seed).parent, "--seed", str(seed), "--precision", precision),
        *("--steps", str(row.steps), "--first-weights", row.first_weights),
    ]
    if row.method == "organs":
        options = read_preset(OrganOptions, row.preset, *given, "none", *SEGMENTATION)
    elif row.method:
        options = read_preset(RivalOptions, row.preset, *given, *COMMON, "--method", row.method, *row.changes)
    else:
        options = read_preset(VocoOptions, row.preset, *given, *COMMON, *row.changes)
    return Piece(options, tuple(each / "series.csv" for each in sets))
