"""train_seg.py: whole runs, interrupted ones, wrong options, several processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from packaging.version import Version
from torch.nn import functional as F

import segment
import train_seg
from src.core.errors import UserError
from src.data.png import read_png, write_png
from src.data.prepared import image_folder, mask_folder, slice_name
from src.nn.encoder import first_kernel
from src.nn.imagenet import read_package
from src.seg.model import load_segmenter
from src.seg.run import train_pair
from tests.helpers.doubtful_sets import mark_doubtful
from tests.helpers.encoder_files import write_encoder
from tests.helpers.seg_runs import make_options, write_organ_set
from tests.helpers.training_runs import assert_same_training, interrupted_after_saves
from tests.helpers.two_processes import start_two

SCRIPT = Path(__file__).parents[2] / "train_seg.py"
COMMON = (
    "--windows soft organ wide --backbones test_efficientnet test_resnet --decoders linknet fpn --batch 2 "
    "--unlabelled-batch 2 --verification 0.5 --pseudo 1 --contrast 0.1 --embedding 8 --workers 0 "
    "--validation 0 --log-every 1 --save-every 1 --precision fp32"
)


@pytest.fixture(scope="module")
def organ_set(tmp_path_factory):
    return write_organ_set(tmp_path_factory.mktemp("organs") / "set")


def arguments(data, output, changes):
    return f"--data {data} --output {output} {COMMON} {changes}".split()


@pytest.mark.slow
def test_train_seg_learns_the_organs_and_scores_the_held_out_patient(tmp_path):
    data = write_organ_set(tmp_path / "set", series=6, labelled=4)
    changes = "--steps 100 --lr 5e-3 --ema-decay 0.9 --leave-out 13 --score-every 50 --save-every 100"
    train_seg.main(arguments(data, tmp_path / "run", changes))
    run = tmp_path / "run"
    scores = pd.read_csv(run / "scores.csv", dtype={"patient_id": str, "series_id": str})
    assert set(scores["patient_id"]) == {"13"}
    assert scores["dice"].mean() > 0.6  # an empty prediction scores 0
    split = pd.read_csv(run / "split.csv", dtype=str)
    assert dict(zip(split["patient_id"], split["part"], strict=True)) == {
        **dict.fromkeys(("10", "11", "12"), "labelled"),
        **dict.fromkeys(("14", "15"), "unlabelled"),
        "13": "left out",
    }
    metrics = pd.read_csv(run / "metrics.csv")
    assert metrics["step"].tolist() == list(range(1, 101))
    assert metrics["loss"].iloc[-1] < metrics["loss"].iloc[0]
    assert metrics["dice"].notna().sum() == 1
    picture = read_png(run / "sheets" / "13" / "103.png")
    assert picture.std() > 10
    assert (run / "curves.png").stat().st_size > 10_000
    assert yaml.safe_load((run / "config.yaml").read_text())["steps"] == 100
    pair, spec = load_segmenter(run / "segmenter.safetensors")
    assert (spec.slices, spec.size, spec.windows) == (3, 64, ("soft", "organ", "wide"))
    assert not any("projection" in name for name in pair.state_dict())


def test_train_pair_skips_doubtful_series_as_if_they_were_not_there(tmp_path, capsys):
    few = write_organ_set(tmp_path / "few", series=5)
    every = mark_doubtful(write_organ_set(tmp_path / "every", series=6), ["105"])
    train_pair(make_options(few, tmp_path / "without"))
    assert "doubtful series" not in capsys.readouterr().out
    train_pair(make_options(every, tmp_path / "skip"))
    assert capsys.readouterr().out.count("doubtful series: 1, left out of training") == 1
    assert_same_training(tmp_path / "without", tmp_path / "skip")
    train_pair(make_options(every, tmp_path / "skip"))  # finished: no step is left
    with pytest.raises(UserError, match="other series than --data and --doubtful give now"):
        train_pair(make_options(every, tmp_path / "skip", doubtful="keep"))


def test_train_pair_continues_to_the_same_result(organ_set, tmp_path):
    whole, broken = (make_options(organ_set, tmp_path / name) for name in ("whole", "broken"))
    train_pair(whole)
    with interrupted_after_saves(2):
        train_pair(broken)
    train_pair(broken)
    assert_same_training(tmp_path / "whole", tmp_path / "broken")


def test_train_pair_does_not_depend_on_workers(organ_set, tmp_path):
    for workers in (0, 2):
        train_pair(make_options(organ_set, tmp_path / str(workers), workers=workers))
    assert_same_training(tmp_path / "0", tmp_path / "2")


@pytest.mark.slow
def test_train_seg_on_two_processes_continues_to_the_same_result(organ_set, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = "--steps 8 --leave-out 12"
    outcome = start_two("train_seg.py", arguments(organ_set, whole, steps)).wait()
    assert outcome == 0 and (whole / "scores.csv").exists()
    process = start_two("train_seg.py", arguments(organ_set, killed, steps), start_new_session=True)
    deadline = time.monotonic() + 120
    while not (killed / "last.pt").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 1 <= torch.load(killed / "last.pt", weights_only=True)["step"] < 8
    assert start_two("train_seg.py", arguments(organ_set, killed, steps)).wait() == 0
    assert_same_training(whole, killed)


def test_train_seg_warns_of_unreadable_held_out_series_and_scores_the_others(tmp_path, capsys):
    data = write_organ_set(tmp_path / "set", series=6, labelled=4)
    (image_folder(data, "12", "102") / slice_name(5)).write_bytes(b"")
    (mask_folder(data, "11", "101") / slice_name(5)).write_bytes(b"")
    changes = "--steps 2 --leave-out 11 12 13 --score-every 1"
    train_seg.main(arguments(data, tmp_path / "run", changes))
    errors = capsys.readouterr().err
    assert "12/102 is not scored: " in errors and "11/101 is not scored: " in errors
    scores = pd.read_csv(tmp_path / "run" / "scores.csv", dtype={"patient_id": str, "series_id": str})
    assert set(scores["patient_id"]) == {"13"}
    assert [path.stem for path in (tmp_path / "run" / "sheets").glob("*/*.png")] == ["103"]


@pytest.mark.slow
def test_train_seg_and_segment_run_in_half_precision(organ_set, tmp_path):
    """In separate processes: accelerate keeps the precision of its first use."""
    given = arguments(organ_set, tmp_path / "run", "--steps 2 --precision bf16")
    subprocess.run([sys.executable, str(SCRIPT), *given], check=True, stdout=subprocess.DEVNULL)
    given = f"--model {tmp_path / 'run'} --data {organ_set} --output {tmp_path / 'masks'} --precision bf16"
    segmenting = [sys.executable, str(SCRIPT.with_name("segment.py")), *given.split(), "--workers", "0"]
    subprocess.run(segmenting, check=True, stdout=subprocess.DEVNULL)
    assert len(list((tmp_path / "masks").glob("*/*/0000.png"))) == 6


def test_train_pair_takes_windows_normalisation_and_patients_of_the_encoder(organ_set, tmp_path, capsys):
    windows = ("soft", "organ", "wide")
    greys = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "windows": windows[::-1]}
    encoder = write_encoder(tmp_path / "encoder.safetensors", "test_resnet", patients=("12",), **greys)
    changes = {"encoder": tmp_path / "encoder.safetensors", "windows": windows, "leave_out": ("12",)}
    train_pair(make_options(organ_set, tmp_path / "run", steps=1, lr=1e-9, ema_decay=0.0, **changes))
    printed = capsys.readouterr()
    assert "tensors matched" in printed.out
    assert "pre-trained on 1 of the 1 patients left out" in printed.err
    pair, spec = load_segmenter(tmp_path / "run" / "segmenter.safetensors")
    assert spec.backbones == ("test_resnet", "test_resnet")  # the first one is that of the encoder
    assert spec.means[0] == (0.3, 0.2, 0.1) and spec.stds[0] == (0.6, 0.5, 0.4)
    assert pair.a.mean.flatten()[:3].tolist() == pytest.approx([0.3, 0.2, 0.1])
    own, kernel = (first_kernel(net).detach() for net in (encoder, pair.a.net.encoder.model))
    # three slices of three windows: the middle one gets the kernel of the encoder's single slices
    assert torch.allclose(kernel, F.pad(own.flip(1), (0, 0, 0, 0, 3, 3)), atol=1e-6)


@pytest.mark.parametrize(
    ("learnt", "given", "expected", "warns"),
    [
        (("wide", "soft"), None, ("wide", "soft"), False),
        (("wide", "soft"), ("soft",), ("soft",), True),
        (("lung",), None, ("soft", "organ", "wide"), True),
        (None, None, ("soft", "organ", "wide"), False),
    ],
    ids=str,
)
def test_train_pair_shows_the_windows_of_the_encoder(
    organ_set, tmp_path, capsys, learnt, given, expected, warns
):
    changes = {"windows": given, "slices": 1, "steps": 1}
    if learnt is not None:
        changes["encoder"] = tmp_path / "encoder.safetensors"
        count = len(learnt)
        write_encoder(changes["encoder"], windows=learnt, mean=(0.5,) * count, std=(0.25,) * count)
    options = make_options(organ_set, tmp_path / "run", decoders=("linknet", "unet"), **changes)
    for _ in range(2):  # the second run has nothing left to do, and nothing to warn of
        train_pair(options)
    assert load_segmenter(tmp_path / "run" / "segmenter.safetensors")[1].windows == expected
    assert capsys.readouterr().err.count("its input is now") == warns


def test_train_pair_starts_each_sub_network_from_its_first_weights(organ_set, tmp_path, capsys):
    backbones = ("test_resnet", "tf_efficientnet_lite0")
    given = {"backbones": backbones, "first_weights": ("none", "package"), "lr": 1e-9, "ema_decay": 0.0}
    options = make_options(organ_set, tmp_path / "run", steps=2, **given)
    train_pair(options)
    printed = capsys.readouterr().out
    assert "first weights of A (test_resnet): random" in printed
    assert "first weights of B (tf_efficientnet_lite0): ImageNet weights" in printed
    pair, spec = load_segmenter(tmp_path / "run" / "segmenter.safetensors")
    assert spec.means[0][0] == 0.5 and spec.means[1][0] == pytest.approx(127 / 255)
    kernel = read_package(pair.b.encoder)["conv_stem.weight"]
    windows = len(spec.windows)
    assert kernel.shape[1] == windows * spec.slices == 3  # three slices of a window: a colour each
    assert torch.allclose(pair.b.encoder.conv_stem.weight, kernel, atol=1e-6)
    # to continue, nothing is loaded, and grey levels come from the checkpoint
    (tmp_path / "run" / "segmenter.safetensors").unlink()
    train_pair(options)
    assert "first weights" not in capsys.readouterr().out
    assert load_segmenter(tmp_path / "run" / "segmenter.safetensors")[1] == spec


def test_train_pair_warns_of_what_the_encoder_of_b_learnt(organ_set, tmp_path, capsys):
    first = tmp_path / "encoder.safetensors"
    write_encoder(first, "test_resnet", patients=("12",))
    given = {"first_weights": ("none", first), "windows": ("soft",), "leave_out": ("12",), "steps": 1}
    train_pair(make_options(organ_set, tmp_path / "run", **given))
    printed = capsys.readouterr().err
    assert "pre-trained on 1 of the 1 patients left out" in printed
    assert printed.count("its input is now soft of 3 adjacent slices") == 1


@pytest.mark.parametrize("backbone", ["coat_lite_tiny", "maxvit_nano_rw_256", "swin_s3_tiny_224"])
def test_train_pair_trains_transformers_at_any_size(organ_set, tmp_path, backbone):
    given = {"backbones": (backbone, "test_resnet"), "decoders": ("unet", "unet")}
    options = make_options(organ_set, tmp_path / "run", steps=1, **given)
    if backbone.startswith("coat") and Version(timm.__version__) < Version("1.0.31"):
        with pytest.raises(UserError, match=rf"^decoder unet on backbone {backbone} .*need timm 1\.0\.31"):
            train_pair(options)
        return
    train_pair(options)
    pair, spec = load_segmenter(tmp_path / "run" / "segmenter.safetensors")
    images = torch.zeros(1, spec.size, spec.size, spec.channels, dtype=torch.uint8)
    assert pair.probabilities(images).shape[-1] == spec.size


def test_train_pair_at_a_smaller_size_segments_slices_as_prepared(organ_set, tmp_path):
    train_pair(make_options(organ_set, tmp_path / "run", steps=2, size=32))
    _, spec = load_segmenter(tmp_path / "run" / "segmenter.safetensors")
    assert spec.size == 32
    segment.main(f"--model {tmp_path}/run --data {organ_set} --output {tmp_path}/masks".split())
    masks = list((tmp_path / "masks").glob("*/*/0000.png"))
    assert masks and all(read_png(path).shape[:2] == (64, 64) for path in masks)


def test_train_pair_refuses_a_label_that_is_no_organ_in_one_line(tmp_path):
    data = write_organ_set(tmp_path / "set", series=2, labelled=1)
    for path in mask_folder(data, "10", "100").glob("*.png"):
        write_png(path, read_png(path) + np.uint8(3))
    with pytest.raises(UserError, match=r"masks/10/100/00\d\d.png has the label \d, the last organ is 5"):
        train_pair(make_options(data, tmp_path / "run", steps=1, pseudo=0.0, contrast=0.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("--slices 2", "--slices must be odd"),
        ("--backbones resnet10t no_such_net", "no backbone 'no_such_net'"),
        ("--decoders pan fpn", "cannot take images of 64 px"),
        ("--pseudo -1", "--pseudo must be at least 0"),
        ("--size -1", "--size must be at least 0"),
        ("--save-every 3 --log-every 2", "--save-every 3 must be a multiple"),
        ("--encoder missing.safetensors", "there is no file missing.safetensors"),
        (
            "--backbones test_resnet test_resnet --decoders fpn fpn",
            "fpn on test_resnet: they must differ",
        ),
        (
            "--decoders deeplabv3plus fpn --batch 1 --pseudo 0 --contrast 0",
            "cannot learn from one slice per step",
        ),
    ],
)
def test_train_seg_refuses_a_mistake_in_one_line_and_writes_nothing(organ_set, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train_seg.main(arguments(organ_set, tmp_path / "run", f"--steps 2 {changes}"))
    assert not (tmp_path / "run").exists()


def test_train_pair_refuses_a_checkpoint_of_other_options_or_labels(organ_set, tmp_path):
    train_pair(make_options(organ_set, tmp_path / "run", steps=1))
    with pytest.raises(UserError, match="made with --lr"):
        train_pair(make_options(organ_set, tmp_path / "run", steps=1, lr=1e-2))
    table = tmp_path / "few.csv"
    table.write_text("patient_id,series_id\n10,100\n")
    with pytest.raises(UserError, match="other series"):
        train_pair(make_options(organ_set, tmp_path / "run", steps=1, labelled=table))
    train_pair(make_options(organ_set, tmp_path / "run", steps=1, labelled=table, resume="never"))


def test_train_pair_stops_at_a_loss_that_is_not_finite_and_names_the_series(organ_set, tmp_path):
    with pytest.raises(UserError, match=r"step \d+: loss or gradient is not finite .* 1\d/10\d"):
        train_pair(make_options(organ_set, tmp_path / "run", steps=8, lr=1e30, warmup=0.0))
