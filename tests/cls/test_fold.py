"""Training of one network: its steps, and the advice where memory is too small."""

import pandas as pd
import pytest

import train_cls
from src.cls.fold import NetworkTraining
from src.cls.inputs import TrainingInputs
from src.cls.options import ClassifierOptions
from src.cls.run import build_model, describe_networks
from src.core.config import parse_options
from src.core.runtime import Runtime
from src.nn.schedule import LoopSettings
from src.nn.training import TrainingLoop
from tests.helpers.device_waits import DEVICES, train_without_waits
from tests.helpers.training_runs import interrupted_after_saves


def build_training(arguments: list[str]) -> NetworkTraining:
    """The training of fold 0 before its first step."""
    options = parse_options(ClassifierOptions, arguments, prog="", description="")
    inputs = TrainingInputs.read(options)
    (network,) = describe_networks(options, inputs)
    series = inputs.series[inputs.series.fold != 0].reset_index(drop=True)
    model = build_model(network.spec, options, 0)
    return NetworkTraining(Runtime.create("fp32"), model, network.spec, options, inputs, series, "fold0")


@pytest.mark.parametrize(
    "changes",
    [
        {"slice_loss": 1.0, "mixup": 1.0, "micro_batch": 8},
        {"organ_loss": 1.0, "cutmix": 1.0, "loss": "metric", "masks": "each"},
        {"organ_loss": 1.0, "organ_slices": 2, "micro_batch": 5},
        {"slice_loss": 1.0, "targets": "liver", "sequence": "transformer", "spacing_mm": 60},
        {"sequence": "none", "pooling": "attention", "drop_path": 0.2, "class_balance": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("device", DEVICES)
def test_train_on_does_not_wait_for_the_device(run_arguments, tmp_path, changes, device):
    def build_step():
        method = build_training(run_arguments(**changes))
        settings = LoopSettings(6, 0, 1e-3, 1.0, 0, log_every=1, save_every=1)
        loop = TrainingLoop(method, settings, method.runtime, tmp_path, {})
        return loop, next(method.read(0))

    train_without_waits(build_step, device)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "go on with --micro-batch (slices at a time), or start from scratch with a lower --batch ("),
        ({"micro_batch": 5}, "go on with a lower --micro-batch, or start"),
        ({"micro_batch": 4}, "start from scratch with a lower --batch ("),  # the minimum for BatchNorm
        ({"micro_batch": 4, "backbone": "test_convnext"}, "go on with a lower --micro-batch, or start"),
        ({"batch": 1, "micro_batch": 4}, "start from scratch with a lower --slices or --crop, and --resume"),
        (
            {"organ_loss": 1.0, "micro_batch": 4},
            "start from scratch with a lower --organ-slices, --batch (",
        ),
    ],
    ids=str,
)
def test_memory_advice_names_options_that_can_be_changed(run_arguments, changes, expected):
    assert build_training(run_arguments(**changes)).memory_advice.startswith(expected)


def test_train_network_continues_with_another_micro_batch(run_arguments, tmp_path):
    """As the advice says; without batch statistics, dropout or other differences, with the same result."""
    steady = {"backbone": "test_convnext", "fold": 0, "dropout": 0.0, "precision": "fp32"}
    train_cls.main(run_arguments("whole", **steady))
    with interrupted_after_saves():
        train_cls.main(run_arguments("broken", **steady))
    train_cls.main(run_arguments("broken", **steady, micro_batch=6))
    one, other = (pd.read_csv(tmp_path / run / "fold0/metrics.csv") for run in ("whole", "broken"))
    assert one["step"].tolist() == other["step"].tolist() == [1, 2]
    pd.testing.assert_frame_equal(one, other, rtol=1e-4)
    assert "micro_batch: 6" in (tmp_path / "broken/config.yaml").read_text()
