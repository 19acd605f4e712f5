"""Every preset loads, and says why it is as it is."""

from pathlib import Path

import pytest
import timm

from src.cls.options import ClassifierOptions
from src.core.config import parse_options
from src.voco.options import VocoOptions

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"voco": VocoOptions, "cls": ClassifierOptions}
REQUIRED = {
    "voco": "--data prepared --output run",
    "cls": "--data prepared --labels train.csv --folds folds.csv --output run",
}
PRESETS = sorted((ROOT / "configs").glob("*/*.yaml"))


def test_presets_are_found_for_every_stage():
    assert {path.parent.name for path in PRESETS} == set(STAGES)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_preset_loads(path):
    stage = path.parent.name
    argv = ["--config", str(path), *REQUIRED[stage].split()]
    options = parse_options(STAGES[stage], argv, prog="script.py", description="")
    assert timm.is_model(options.backbone)
    assert path.read_text(encoding="utf-8").startswith("# "), "a preset says what it is for"
