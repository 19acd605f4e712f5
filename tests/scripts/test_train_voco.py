"""train_voco.py trains a preset from any folder, and refuses a mistake in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from src.core.errors import UserError
from tests.helpers.voco_files import draw_anatomy, write_prepared
from train_voco import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("prepared") / "set", draw_anatomy, slices=4)


def test_train_voco_trains_the_demo_preset_from_any_folder(prepared, tmp_path):
    preset = ROOT / "configs" / "voco" / "demo.yaml"
    arguments = ("--config", preset, "--data", prepared, "--output", "run", "--steps", "2", "--workers", "1")
    command = [sys.executable, ROOT / "train_voco.py", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step 2/2  loss" in done.stdout
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "encoder.safetensors", "last.pt", "metrics.csv", "patients.csv"} <= written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--canvas 100", "--canvas 100 must be a multiple of --grid 3"),
        ("--batch 1", "--batch must be at least 2"),
        ("--batch 7", "6 usable series are fewer than a batch of 7"),
        ("--momentum 1", "--momentum must be at least 0 and below 1"),
        ("--save-every 75", "--save-every 75 must be a multiple of --log-every 50"),
        ("--backbone resnet10000", "timm has no backbone"),
        ("--resume absent.pt", "no checkpoint absent.pt"),
    ],
)
def test_train_voco_refuses_a_mistake_and_writes_nothing(prepared, tmp_path, arguments, message):
    given = f"--data {prepared} --output {tmp_path}/run --backbone resnet10t --projection 8 --workers 0"
    with pytest.raises(UserError, match=message):
        main([*given.split(), *arguments.split()])
    assert not (tmp_path / "run").exists()
