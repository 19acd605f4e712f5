"""Every file in configs loads, and says what it is for."""

from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import timm
import yaml

from src.cls.options import ClassifierOptions, Flip, Pooling, Region, SequenceModel, Target
from src.cls.second_options import SecondLevelOptions
from src.cls.views import MASK_CHANNELS, REGIONS
from src.core.config import parse_options
from src.core.targets import ORGANS, TARGETS
from src.ct.label_ids import read_mask_ids
from src.infer.options import InferOptions
from src.nn.augmentation import FLIPS
from src.nn.encoder3d import VOLUME_BACKBONES
from src.nn.sequence import POOLINGS, SEQUENCES
from src.prepare.options import PrepareOptions
from src.seg.options import Organ, SegmentOptions, SegOptions
from src.voco.options import VocoOptions

ROOT = Path(__file__).resolve().parents[2]
TRAINERS = {"voco": VocoOptions, "seg": SegOptions, "cls": ClassifierOptions}
STAGES = TRAINERS | {"second": SecondLevelOptions}
REQUIRED = {
    "voco": "--data prepared --output run",
    "seg": "--data prepared --output run",
    "cls": "--data prepared --labels train.csv --folds folds.csv --output run",
    "second": "--runs run --data prepared --labels train.csv --folds folds.csv --output second",
}
CONFIGS = sorted((ROOT / "configs").glob("*/*.yaml"))
PRESETS = [path for path in CONFIGS if path.parent.name in STAGES]
OF_NETWORKS = [path for path in PRESETS if path.parent.name in TRAINERS]
MASK_TABLES = [path for path in CONFIGS if path.parent.name == "masks"]


PROFILES = [path for path in CONFIGS if path.parent.name == "profiles"]
SCRIPTS = {
    "prepare_data": (PrepareOptions, "--input raw --output prepared"),
    "train_voco": (VocoOptions, REQUIRED["voco"]),
    "train_seg": (SegOptions, REQUIRED["seg"]),
    "segment": (SegmentOptions, "--model run --data prepared"),
    "train_cls": (ClassifierOptions, REQUIRED["cls"]),
    "second_level": (SecondLevelOptions, REQUIRED["second"]),
    "infer": (InferOptions, "--input raw --models run --sample sample.csv --output submission.csv"),
}
"""Scripts that a profile may have a section of."""


def test_every_config_is_of_a_known_kind():
    assert {path.parent.name for path in CONFIGS} == {*STAGES, "masks", "profiles"}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_loads_in_each_of_its_scripts(path):
    sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert sections and sections.keys() <= SCRIPTS.keys()
    for script, (options, required) in SCRIPTS.items():
        given = required.split()
        plain = parse_options(options, given, prog=f"{script}.py", description="")
        changed = parse_options(options, ["--config", str(path), *given], prog=f"{script}.py", description="")
        assert (changed == plain) == (script not in sections)
    assert path.read_text(encoding="utf-8").startswith("# "), "a profile says what it is for"


@pytest.mark.parametrize("path", MASK_TABLES, ids=lambda path: path.stem)
def test_a_table_of_mask_ids_loads(path):
    assert set(read_mask_ids(path).values()) <= set(ORGANS.values())
    assert path.read_text(encoding="utf-8").startswith("# "), "a table says whose ids these are"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_preset_loads(path):
    stage = path.parent.name
    argv = ["--config", str(path), *REQUIRED[stage].split()]
    options = parse_options(STAGES[stage], argv, prog="script.py", description="")
    for backbone in getattr(options, "backbones", None) or (getattr(options, "backbone", "resnet18"),):
        assert timm.is_model(backbone) or backbone in VOLUME_BACKBONES
    assert path.read_text(encoding="utf-8").startswith("# "), "a preset says what it is for"


@pytest.mark.parametrize(
    ("choices", "known"),
    [
        (Target, TARGETS),
        (Region, (*REGIONS, "own")),
        (get_type_hints(ClassifierOptions)["masks"], MASK_CHANNELS),
        (SequenceModel, SEQUENCES),
        (Pooling, POOLINGS),
        (Flip, FLIPS),
        (Organ, ORGANS),
    ],
    ids=str,
)
def test_options_offer_what_the_code_knows(choices, known):
    """Options modules spell their choices out, since they import no torch."""
    assert get_args(choices) == tuple(known)


FROM_IMAGENET = {
    *("voco/v1", "voco/v2", "voco/plus", "seg/dual", "seg/supervised"),
    *("cls/cnn_lstm", "cls/organ_aware", "cls/competition", "cls/organ_wise"),
}
"""Presets for real data; the others are of 3D backbones, or for minutes on a CPU."""
FROM_PACKAGE = {"voco/demo", "cls/demo"}  # make demo needs no network


@pytest.mark.parametrize("path", OF_NETWORKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_preset_starts_from_imagenet_where_it_can(path):
    stage = path.parent.name
    argv = ["--config", str(path), *REQUIRED[stage].split()]
    options = parse_options(STAGES[stage], argv, prog="script.py", description="")
    backbones = options.backbones if stage == "seg" else (options.backbone,)
    sources = options.sources if stage == "seg" else (options.first_weights,)
    name = f"{stage}/{path.stem}"
    expected = "imagenet" if name in FROM_IMAGENET else "package" if name in FROM_PACKAGE else "none"
    assert set(sources) == {expected}
    if expected == "imagenet":
        abouts = [timm.get_pretrained_cfg(backbone) for backbone in backbones]
        assert all(about.has_weights for about in abouts)


COMMON = {
    "random_crops": 2,
    "momentum": 0.9,
    "final_momentum": None,
    "lr": 1e-4,
    "steps": 250_000,
    "temperature": 0.1,
}
COMMON |= {"warmup": 0.02, "objective": "overlap", "appearance": 0.0, "grid_z": 1, "tile": 64}
SLAB = {"extent": "slab", "canvas": 192, "depth": 64, "grid": 3, "slices": 32, "foreground": 0.3}
WHOLE = {"extent": "whole", "canvas": 384, "depth": 96, "grid": 4, "foreground": 0.3}
STILL = {"crop_flip": 0.0, "crop_rotate90": 0.0, "crop_shift": 0.0}
MOVED = {"crop_flip": 0.2, "crop_rotate90": 0.2, "crop_shift": 0.1}
OWN = {"inter_volume": False, "directions": "both", "negatives": "square", "shared_backbone": False}
NEXT = {"inter_volume": True, "directions": "student", "negatives": "square", "shared_backbone": False}
PUBLISHED = {
    "v1": WHOLE | STILL | OWN | {"slices": 32, "batch": 1, "projection": 2048, "dropout": 0.0},
    "v2": SLAB | STILL | NEXT | {"batch": 4, "projection": 2048, "dropout": 0.2},
    "3d": WHOLE | MOVED | OWN | {"slices": 64, "batch": 2, "projection": 2048, "dropout": 0.0},
    "large": SLAB
    | MOVED
    | NEXT
    | {"extent": "box", "spacing_mm": 1.5, "foreground": 0.0, "slices": 64, "negatives": "log"}
    | {"shared_backbone": True, "projection": 1024, "dropout": 0.0, "backbone": "swin_unetr_b"},
}
"""What the papers and the authors' code state; the batch of large-scale VoCo is not among it."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_method_has_its_published_setting(name):
    argv = ["--config", str(ROOT / f"configs/voco/{name}.yaml"), *REQUIRED["voco"].split()]
    options = parse_options(VocoOptions, argv, prog="script.py", description="")
    expected = COMMON | PUBLISHED[name]
    assert {key: getattr(options, key) for key in expected} == expected


SUPERVISED = {
    name: getattr(SegOptions(data=("x",), output="y"), name)  # the defaults, which learn from labels alone
    for name in ("verification", "pseudo", "contrast", "unlabelled_batch", "ramp")
}


@pytest.mark.parametrize("size", ["", "_small"])
def test_supervised_is_the_pair_of_dual_without_its_further_terms(size):
    supervised, dual = (
        parse_options(
            SegOptions,
            ["--config", f"configs/seg/{name}{size}.yaml", *REQUIRED["seg"].split()],
            prog="train_seg.py",
            description="",
        )
        for name in ("supervised", "dual")
    )
    assert supervised == replace(dual, **SUPERVISED)
    assert dual.verification == 0.5 and 0 < dual.contrast < 0.1  # the published weight, and less than it
    assert dual.pseudo > 0 and dual.flip == 0
