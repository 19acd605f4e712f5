"""Every file in configs loads, and says what it is for."""

from pathlib import Path

import pytest
import timm

from src.cls.options import ClassifierOptions
from src.core.config import parse_options
from src.data.mask_ids import read_mask_ids
from src.data.stack import ORGANS
from src.nn.encoder3d import VOLUME_BACKBONES
from src.voco.options import VocoOptions

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"voco": VocoOptions, "cls": ClassifierOptions}
REQUIRED = {
    "voco": "--data prepared --output run",
    "cls": "--data prepared --labels train.csv --folds folds.csv --output run",
}
CONFIGS = sorted((ROOT / "configs").glob("*/*.yaml"))
PRESETS = [path for path in CONFIGS if path.parent.name in STAGES]
MASK_TABLES = [path for path in CONFIGS if path.parent.name == "masks"]


def test_every_config_is_of_a_known_kind():
    assert {path.parent.name for path in CONFIGS} == {*STAGES, "masks"}


@pytest.mark.parametrize("path", MASK_TABLES, ids=lambda path: path.stem)
def test_a_table_of_mask_ids_loads(path):
    assert set(read_mask_ids(path).values()) <= set(ORGANS.values())
    assert path.read_text(encoding="utf-8").startswith("# "), "a table says whose ids these are"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_preset_loads(path):
    stage = path.parent.name
    argv = ["--config", str(path), *REQUIRED[stage].split()]
    options = parse_options(STAGES[stage], argv, prog="script.py", description="")
    assert timm.is_model(options.backbone) or options.backbone in VOLUME_BACKBONES
    assert path.read_text(encoding="utf-8").startswith("# "), "a preset says what it is for"
