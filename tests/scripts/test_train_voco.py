"""train_voco.py explains itself, takes every preset, and refuses a mistake in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from src.core.config import parse_options
from src.core.errors import UserError
from src.voco.options import VocoOptions
from tests.helpers.voco_files import draw_anatomy, write_prepared
from train_voco import main

ROOT = Path(__file__).parents[2]


def run_script(*arguments, folder=ROOT):
    command = [sys.executable, ROOT / "train_voco.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("prepared") / "set", draw_anatomy, slices=4)


def test_v2_has_the_published_geometry():
    options = parse_options(
        VocoOptions,
        ["--config", str(ROOT / "configs/voco/v2.yaml"), "--data", "data", "--output", "run"],
        prog="train_voco.py",
        description="",
    )
    assert options.canvas // options.grid == 64
    assert options.batch * options.slices * (options.grid**2 + options.random_crops) == 1408
    assert options.warmup * options.steps == 5000


def test_the_demo_preset_trains_from_any_folder(prepared, tmp_path):
    preset = ROOT / "configs" / "voco" / "demo.yaml"
    arguments = ("--config", preset, "--data", prepared, "--output", "run", "--steps", "2", "--workers", "1")
    done = run_script(*arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step 2/2  loss" in done.stdout
    written = {path.name for path in (tmp_path / "run").iterdir()}
    expected = {"config.yaml", "encoder.safetensors", "last.pt", "metrics.csv", "patients.csv"}
    assert expected <= written


def test_help_explains_every_option():
    done = run_script("--help")
    assert done.returncode == 0
    for name in VocoOptions.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in done.stdout
    assert "cross_placing" in done.stdout


def test_a_mistake_ends_in_one_line_and_status_2(tmp_path):
    done = run_script("--data", tmp_path / "absent", "--output", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert str(tmp_path / "absent") in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stepz", "3"], "unknown option --stepz; did you mean --steps"),
        (["--step", "3"], "unknown option --step"),
        (["--steps", "many"], "--steps"),
        (["--canvas", "100"], "--canvas 100 must be a multiple of --grid 3"),
        (["--batch", "1"], "--batch must be at least 2"),
        (["--batch", "7"], "6 usable series are fewer than a batch of 7"),
        (["--windows", "soft", "bone"], "has no window bone"),
        (["--momentum", "1"], "--momentum must be at least 0 and below 1"),
        (["--save-every", "75"], "--save-every 75 must be a multiple of --log-every 50"),
        (["--backbone", "resnet10000"], "timm has no backbone"),
        (["--precision", "int4"], "--precision: expected auto, fp32, bf16 or fp16"),
        (["--resume", "absent.pt"], "no checkpoint absent.pt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_refused(prepared, tmp_path, arguments, message):
    base = ["--data", str(prepared), "--output", str(tmp_path / "run"), "--backbone", "resnet10t"]
    with pytest.raises(UserError, match=message):
        main([*base, "--projection", "8", "--workers", "0", *arguments])
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_prepared_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a prepared data set"):
        main(["--data", str(tmp_path), "--output", str(tmp_path / "run")])


def test_a_misspelt_key_of_a_preset_is_refused(prepared, tmp_path):
    (tmp_path / "typo.yaml").write_text("momentun: 0.9\n")
    with pytest.raises(UserError, match="unknown option momentun; did you mean momentum"):
        main(["--config", str(tmp_path / "typo.yaml"), "--data", str(prepared), "--output", "run"])
