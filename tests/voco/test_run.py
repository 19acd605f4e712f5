"""Pre-training runs: learning, resumption, refusals, and the exported encoder."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from src.core.config import parse_options, save_options
from src.core.errors import UserError
from src.core.run_folder import only_writer
from src.core.runtime import Runtime
from src.nn.encoder import create_encoder, read_encoder_file
from src.nn.encoder_weights import load_encoder
from src.nn.schedule import LoopSettings
from src.nn.training import TrainingLoop, load_checkpoint
from src.probe.frozen import load_run
from src.report.voco_pictures import draw_predictions
from src.voco.dataset import VolumeSample, open_dataset
from src.voco.options import VocoOptions
from src.voco.position import PositionPretraining
from src.voco.run import pretrain
from tests.helpers.device_waits import DEVICES, train_without_waits
from tests.helpers.doubtful_sets import mark_doubtful
from tests.helpers.training_runs import assert_same_training, interrupted_after_saves, read_metrics
from tests.helpers.voco_files import WINDOWS, draw_anatomy, write_prepared
from tests.helpers.voco_runs import make_options

SCRIPT = Path(__file__).parents[2] / "train_voco.py"


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("anatomy") / "set", draw_anatomy, series=6)


def test_pretrain_resumes_to_the_same_result(anatomy, tmp_path, capsys):
    """With dropout, across epochs."""
    pretrain(make_options(anatomy, tmp_path / "whole", steps=12))
    broken = make_options(anatomy, tmp_path / "broken", steps=12)
    with interrupted_after_saves(5):
        pretrain(broken)
    pretrain(broken)
    assert "after step 5 of 12" in capsys.readouterr().out
    assert_same_training(tmp_path / "whole", tmp_path / "broken")


@pytest.fixture(scope="module")
def finished(anatomy, tmp_path_factory):
    options = make_options(anatomy, tmp_path_factory.mktemp("finished") / "run")
    pretrain(options)
    return options


@pytest.mark.parametrize("change", [{"lr": 2e-3}, {"seed": 1}, {"batch": 2}, {"steps": 9}], ids=str)
def test_pretrain_refuses_to_resume_with_other_options(finished, change):
    name = next(iter(change))
    with pytest.raises(UserError, match=f"was made with --{name} {getattr(finished, name)}, not"):
        pretrain(dataclasses.replace(finished, **change))


def test_pretrain_refuses_to_resume_on_other_series(finished, tmp_path):
    other = write_prepared(tmp_path / "other", draw_anatomy, series=7)
    with pytest.raises(UserError, match="other series"):
        pretrain(dataclasses.replace(finished, data=(other,)))


def test_pretrain_skips_doubtful_series_as_if_they_were_not_there(tmp_path, capsys):
    few = write_prepared(tmp_path / "few", draw_anatomy, series=4)
    every = mark_doubtful(write_prepared(tmp_path / "every", draw_anatomy, series=6), ["104", "105"])
    pretrain(make_options(few, tmp_path / "without", steps=3))
    assert "doubtful series" not in capsys.readouterr().out
    skipping = make_options(every, tmp_path / "skip", steps=3)
    pretrain(skipping)
    assert capsys.readouterr().out.count("doubtful series: 2, left out of training") == 1
    assert_same_training(tmp_path / "without", tmp_path / "skip")
    patients = pd.read_csv(tmp_path / "skip" / "patients.csv", dtype=str).patient_id.tolist()
    assert patients == ["10", "11", "12", "13"]
    with pytest.raises(UserError, match="other series than --data and --doubtful give now"):
        pretrain(dataclasses.replace(skipping, doubtful="keep"))
    pretrain(make_options(every, tmp_path / "keep", steps=3, doubtful="keep"))
    assert "doubtful series: 2, trained on" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "keep" / "patients.csv")) == 6


def test_pretrain_resumes_with_another_doubtful_where_no_series_is(finished, tmp_path, capsys):
    output = shutil.copytree(finished.output, tmp_path / "run")
    pretrain(dataclasses.replace(finished, output=output, doubtful="keep"))
    assert "after step 6 of 6" in capsys.readouterr().out


def test_pretrain_resume_takes_never_or_a_path(finished, tmp_path):
    elsewhere = dataclasses.replace(finished, output=tmp_path / "elsewhere")
    pretrain(dataclasses.replace(elsewhere, resume=str(finished.output / "last.pt")))
    assert not (tmp_path / "elsewhere" / "last.pt").exists()  # it was finished: no step was left
    pretrain(elsewhere)
    pretrain(dataclasses.replace(elsewhere, resume="never", seed=3))
    assert read_metrics(tmp_path / "elsewhere")["step"].tolist() == list("123456")
    assert load_checkpoint(tmp_path / "elsewhere" / "last.pt")["options"]["seed"] == 3


def test_pretrain_names_the_series_of_a_loss_that_is_not_finite(anatomy, tmp_path):
    with pytest.raises(
        UserError, match=r"step \d: loss or gradient is not finite .* series 1\d/10\d, 1\d/10\d"
    ):
        pretrain(make_options(anatomy, tmp_path, lr=1e30, warmup=0.0))
    saved = load_checkpoint(tmp_path / "last.pt")  # what is kept was finite
    assert saved["step"] < 6


def test_pretrain_warns_once_of_a_collapse(tmp_path, capsys):
    """Black images have equal embeddings; this network does not normalise by the batch."""
    black = write_prepared(tmp_path / "set", lambda s, i: np.zeros((96, 96, 3), np.uint8), slices=3)
    pretrain(make_options(black, tmp_path / "run", canvas=96, tile=32, backbone="convnext_atto", steps=3))
    assert capsys.readouterr().err.count("every crop gets nearly the same embedding") == 1


def test_pretrain_learns_places_that_hold_across_patients(anatomy, tmp_path):
    """The whole chain: crops read in another order or labelled wrongly would be placed at chance, 0.11."""
    changes = {"steps": 30, "batch": 6, "dropout": 0.0, "log_every": 5, "save_every": 30}
    pretrain(make_options(anatomy, tmp_path, backbone="resnet10t", **changes))
    first, *_, last = read_metrics(tmp_path).to_dict("records")
    assert float(last["loss"]) < float(first["loss"]) / 2
    assert float(last["cross_placing"]) > 0.6
    assert float(last["cross_low"]) > float(first["cross_high"])


def test_export_writes_the_teachers_encoder_for_plain_timm(finished):
    path = finished.output / "encoder.safetensors"
    plain = timm.create_model(finished.backbone, in_chans=3, num_classes=0, checkpoint_path=str(path))
    teacher = load_checkpoint(finished.output / "last.pt")["teacher"]
    for name, value in plain.state_dict().items():
        assert torch.equal(value, teacher[f"encoder.{name}"])
    report = load_encoder(create_encoder(finished.backbone, 3), path)
    assert not report.missing and not report.unused and not report.adapted


def test_export_records_options_and_patients(finished):
    about = read_encoder_file(finished.output / "encoder.safetensors")
    assert (about.name, about.in_channels, about.windows) == (finished.backbone, 3, WINDOWS)
    assert len(about.mean) == len(about.std) == 3
    assert about.trained_by["options"]["steps"] == 6
    listed = pd.read_csv(finished.output / "patients.csv", dtype=str)
    assert about.patients == tuple(listed["patient_id"]) == ("10", "11", "12", "13", "14", "15")


def test_pretrain_saves_its_options_as_a_preset(finished):
    config = ["--config", str(finished.output / "config.yaml")]
    assert parse_options(VocoOptions, config, prog="train_voco.py", description="") == finished


def test_pretrain_refuses_tiles_too_small_for_bf16_on_a_cpu(anatomy, tmp_path, monkeypatch):
    monkeypatch.setattr(Runtime, "is_bf16_on_cpu", property(lambda runtime: True))
    with pytest.raises(UserError, match="bf16 gives wrong gradients for images of 16 px"):
        pretrain(make_options(anatomy, tmp_path / "run"))  # tiles of 16 px, strides of 32
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_pretrain_in_bf16_stays_finite(anatomy, tmp_path):
    """In another process, since a process has one precision; with memory that is not zero at first."""
    options = make_options(anatomy, tmp_path / "run", precision="bf16", steps=3, tile=32)
    save_options(options, tmp_path / "bf16.yaml")
    command = [sys.executable, SCRIPT, "--config", tmp_path / "bf16.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_PERTURB_": "128"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    assert np.isfinite(read_metrics(tmp_path / "run")["loss"].astype(float)).all()


def test_train_on_updates_the_teacher_once_after_the_optimiser(anatomy, tmp_path):
    """Updating before the optimiser, or twice, gives other weights."""
    options = make_options(anatomy, tmp_path / "run", momentum=0.9)
    runtime = Runtime.create("fp32")
    method = PositionPretraining(options, open_dataset(options), runtime)
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    start = {name: value.clone() for name, value in method.network.state_dict().items()}
    tiles = torch.randint(0, 256, (3, 11, 2, 16, 16, len(WINDOWS)), dtype=torch.uint8)
    batch = VolumeSample(tiles, torch.full((3, 2, 9), 1 / 9), torch.arange(3))
    settings = LoopSettings(6, 0, 1e-3, 1.0, options.seed, log_every=1, save_every=1)
    TrainingLoop(method, settings, runtime, tmp_path, {}).train_on(batch, 0)
    for name, after in method.network.state_dict().items():
        if after.is_floating_point():
            expected = 0.9 * before[name] + 0.1 * after
            torch.testing.assert_close(method.teacher.state_dict()[name], expected, rtol=1e-5, atol=1e-7)
    moved = [name for name, value in method.network.named_parameters() if not torch.equal(value, start[name])]
    assert moved, "the step must have changed the student"


def test_pretrain_keeps_encoders_and_pictures_of_chosen_steps(anatomy, tmp_path):
    pretrain(make_options(anatomy, tmp_path, keep_every=2, picture_every=3, steps=4), draw_predictions)
    kept = sorted(path.name for path in tmp_path.glob("encoder*"))
    assert kept == ["encoder.safetensors", "encoder_0000002.safetensors", "encoder_0000004.safetensors"]
    assert read_encoder_file(tmp_path / "encoder_0000002.safetensors").trained_by["steps"] == 2
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["step_0000003.png"]


@pytest.mark.parametrize(
    "changes",
    [
        {"directions": "both", "inter_volume": False, "batch": 1, "extent": "whole"},
        {"objective": "softmax", "grid_z": 2, "slices": 1, "appearance": 1.0},
        {"shared_backbone": True, "negatives": "log", "backbone": "resnet10_3d"},
        {"micro_batch": 16},
    ],
    ids=["v1", "plus", "large", "micro-batches"],
)
def test_pretrain_runs_every_method(anatomy, tmp_path, changes):
    pretrain(make_options(anatomy, tmp_path, steps=2, log_every=2, save_every=2, **changes))
    metrics = read_metrics(tmp_path)
    assert np.isfinite(metrics["loss"].astype(float)).all() and "cross_placing" in metrics
    assert read_encoder_file(tmp_path / "encoder.safetensors").in_channels == 3


def build(options):
    """The method of a run before its first step."""
    return PositionPretraining(options, open_dataset(options), Runtime.create("fp32"))


def encoder_of(options):
    return options.output / "encoder.safetensors"


def test_pretrain_loads_first_weights_once(anatomy, tmp_path, capsys):
    given = {"backbone": "tf_efficientnet_lite0", "first_weights": "package"}
    options = make_options(anatomy, tmp_path, steps=2, **given)
    pretrain(options)
    assert "first weights: ImageNet weights of tf_efficientnet_lite0 (package)" in capsys.readouterr().out
    about = read_encoder_file(encoder_of(options))
    assert about.mean[0] == pytest.approx(127 / 255)
    encoder_of(options).unlink()
    pretrain(options)
    assert "first weights" not in capsys.readouterr().out
    assert read_encoder_file(encoder_of(options)) == about


def test_pretrain_builds_transformers_for_their_tiles(anatomy, tmp_path):
    """The file records the size, so that plain timm builds the same network."""
    options = make_options(anatomy, tmp_path, steps=1, backbone="coat_lite_tiny", tile=32)
    pretrain(options)
    about = read_encoder_file(encoder_of(options))
    assert about.size == options.tile
    given = {"in_chans": about.in_channels, "num_classes": 0, "img_size": about.size}
    timm.create_model(about.name, **given, checkpoint_path=str(encoder_of(options)))


def test_pretrain_keeps_naming_patients_of_the_first_weights(anatomy, finished, tmp_path):
    """Also in a resumed run, which does not read that file again."""
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
def test_export_records_the_windows_of_the_sets(anatomy, tmp_path, set_windows, written, measured):
    data = (anatomy,) * len(set_windows)
    options = make_options(anatomy, tmp_path, windows=("soft",), steps=1)
    options = dataclasses.replace(options, data=data, set_windows=set_windows)
    pretrain(options)
    assert read_encoder_file(encoder_of(options)).windows == written
    assert load_run(tmp_path).windows == measured


def test_pretrain_anew_removes_files_of_the_old_run(anatomy, tmp_path, monkeypatch):
    pretrain(make_options(anatomy, tmp_path, steps=2, keep_every=1))
    monkeypatch.setattr(TrainingLoop, "run", lambda loop: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pretrain(make_options(anatomy, tmp_path, steps=2, resume="never", seed=1))
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "patients.csv"}


def test_pretrain_refuses_a_folder_in_use(anatomy, tmp_path):
    (tmp_path / "run").mkdir()
    with only_writer(tmp_path / "run"), pytest.raises(UserError, match="another run is writing"):
        pretrain(make_options(anatomy, tmp_path / "run"))


def test_pretrain_resumes_with_another_precision(finished, anatomy):
    """As the message about a loss that is not finite advises."""
    pretrain(dataclasses.replace(finished, precision="fp32"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"backbone": "convnext_atto"}, "cannot take images of 16 px"),
        ({"micro_batch": 1}, "--micro-batch must be at least 4"),
    ],
    ids=str,
)
def test_pretraining_refuses_networks_that_do_not_fit(anatomy, tmp_path, changes, expected):
    with pytest.raises(UserError, match=expected):
        build(make_options(anatomy, tmp_path, **changes))


@pytest.mark.parametrize(
    "changes",
    [{"objective": "softmax", "appearance": 0.5}, {"shared_backbone": True}, {"micro_batch": 20}],
    ids=str,
)
@pytest.mark.parametrize("device", DEVICES)
def test_train_on_does_not_wait_for_the_device(anatomy, tmp_path, changes, device):
    def build_step():
        options = make_options(anatomy, tmp_path / "run", **changes)
        dataset, runtime = open_dataset(options), Runtime.create("fp32")
        settings = LoopSettings(6, 0, 1e-3, 1.0, options.seed, log_every=1, save_every=1)
        method = PositionPretraining(options, dataset, runtime)
        return TrainingLoop(method, settings, runtime, tmp_path, {}), next(method.read(0))

    train_without_waits(build_step, device)
