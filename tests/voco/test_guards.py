"""What a pre-training run refuses, remembers and clears away, so that no result is taken for another."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from timm.layers import BatchNormAct2d

from src.core.config import save_options
from src.core.errors import UserError
from src.core.run_folder import only_writer
from src.core.runtime import Runtime, synchronised
from src.nn.encoder import create_encoder, read_encoder_file, save_encoder
from src.probe.frozen import load_run
from src.voco.dataset import open_dataset
from src.voco.run import Pretraining, pretrain
from tests.helpers.voco_files import draw_anatomy, write_prepared
from tests.helpers.voco_runs import make_options

SCRIPT = Path(__file__).parents[2] / "train_voco.py"


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("anatomy") / "set", draw_anatomy, series=6)


@pytest.fixture(scope="module")
def finished(anatomy, tmp_path_factory):
    options = make_options(anatomy, tmp_path_factory.mktemp("finished") / "run", steps=3)
    pretrain(options)
    return options


def build(options):
    """The method of a run before its first step."""
    return Pretraining(options, open_dataset(options), Runtime.create("fp32"))


def encoder_of(options):
    return options.output / "encoder.safetensors"


def test_shared_batch_statistics_keep_the_activations_of_a_backbone():
    """timm's BatchNorms hold the activation behind them; torch's own conversion drops it."""
    encoder = create_encoder("test_efficientnet", 3).eval()
    assert any(isinstance(module, BatchNormAct2d) for module in encoder.modules())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = encoder(images)
        converted = synchronised(encoder).eval()
        torch.testing.assert_close(converted(images), before)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in converted.modules())


def test_patients_whom_the_first_weights_saw_stay_named(anatomy, finished, tmp_path):
    """Through a resumed run, too, which does not read that file again."""
    fewer = write_prepared(tmp_path / "set", draw_anatomy, series=4)
    options = make_options(fewer, tmp_path / "run", encoder=encoder_of(finished), steps=1)
    pretrain(options)
    for _ in range(2):
        assert set(read_encoder_file(encoder_of(options)).patients) == {str(10 + n) for n in range(6)}
        listed = pd.read_csv(tmp_path / "run" / "patients.csv", dtype=str)
        assert set(listed["patient_id"]) == {str(10 + n) for n in range(6)}
        pretrain(options)


@pytest.mark.parametrize(
    ("set_windows", "written", "measured"),
    [
        (("wide",), ("wide",), ("wide",)),
        (("soft", "wide"), ("soft|wide",), ("soft",)),
    ],
    ids=["all alike", "a mixture"],
)
def test_an_encoder_file_names_the_windows_that_were_shown(anatomy, tmp_path, set_windows, written, measured):
    data = (anatomy,) * len(set_windows)
    options = make_options(anatomy, tmp_path, windows=("soft",), steps=1)
    options = dataclasses.replace(options, data=data, set_windows=set_windows)
    pretrain(options)
    assert read_encoder_file(encoder_of(options)).windows == written
    assert load_run(tmp_path).options.windows == measured


def test_a_new_run_that_dies_at_once_leaves_nothing_of_the_old_one(finished, tmp_path):
    options = make_options(Path(finished.data[0]), tmp_path / "run", steps=2, keep_every=1)
    pretrain(options)
    anew = dataclasses.replace(options, resume="never", steps=500, save_every=500, keep_every=0, seed=1)
    save_options(anew, tmp_path / "anew.yaml")
    command = [sys.executable, SCRIPT, "--config", tmp_path / "anew.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if line.startswith("step 2/500"):
                process.send_signal(signal.SIGKILL)
                break
    left = {path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith("events")}
    assert left == {"config.yaml", "patients.csv", "metrics.csv"}


def test_two_runs_do_not_write_to_one_folder(anatomy, tmp_path):
    (tmp_path / "run").mkdir()
    with only_writer(tmp_path / "run"), pytest.raises(UserError, match="another run is writing"):
        pretrain(make_options(anatomy, tmp_path / "run"))


def test_a_run_goes_on_with_another_precision(finished, anatomy):
    """As the message about a lost loss advises."""
    pretrain(dataclasses.replace(finished, precision="fp32"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"backbone": "vit_tiny_patch16_224"}, "cannot take images of 16 px"),
        ({"backbone": "convnext_atto"}, "cannot take images of 16 px"),
        ({"micro_batch": 1}, "--micro-batch must be at least 4"),
        ({"backbone": "swin_unetr_b", "slices": 6}, "swin_unetr_b"),
    ],
    ids=str,
)
def test_networks_that_do_not_fit_are_refused_in_one_line(anatomy, tmp_path, changes, expected):
    with pytest.raises(UserError, match=expected):
        build(make_options(anatomy, tmp_path, **changes))


def test_no_number_is_no_number_above_zero():
    with pytest.raises(ValueError, match="--lr must be above 0"):
        make_options(Path("set"), Path("run"), lr=float("nan"))


def test_weights_go_on_with_the_grey_levels_that_they_know(anatomy, finished, tmp_path):
    """A published encoder was trained on greys from 0 to 1 as they are; training and export keep that."""
    about = read_encoder_file(finished.output / "encoder.safetensors")
    given = dataclasses.replace(about, mean=(0.0,) * 3, std=(1.0,) * 3)
    save_encoder(tmp_path / "given.safetensors", create_encoder(finished.backbone, 3), given)
    options = make_options(anatomy, tmp_path / "run", encoder=tmp_path / "given.safetensors", steps=1)
    pretrain(options)
    after = read_encoder_file(tmp_path / "run" / "encoder.safetensors")
    assert (after.mean, after.std) == (given.mean, given.std)
    network = build(options).network
    assert network.mean.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("content", "mean", "std"),
    [
        (lambda weights: {f"student.{name}": value for name, value in weights.items()}, 0.0, 1.0),
        (
            lambda weights: {
                "teacher": {f"encoder.{name}": value for name, value in weights.items()}
                | {"mean": torch.full((3,), 0.125), "std": torch.full((3,), 0.5)}
            },
            0.125,
            0.5,
        ),
        (lambda weights: weights, 0.5, 0.25),
    ],
    ids=["published", "checkpoint of a run", "plain timm"],
)
def test_a_checkpoint_is_fed_the_greys_of_its_kind(anatomy, tmp_path, content, mean, std):
    weights = create_encoder("mobilenetv3_small_050", 3).state_dict()
    torch.save(content(weights), tmp_path / "given.pth")
    options = make_options(anatomy, tmp_path / "run", encoder=tmp_path / "given.pth")
    network = build(options).network
    assert (network.mean.tolist(), network.std.tolist()) == ([mean] * 3, [std] * 3)
