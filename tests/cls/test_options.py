"""Options of train_cls.py: each, changed alone, changes the predictions of a tiny run; contradictions."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import train_cls
from src.cls.options import ClassifierOptions
from src.core.errors import UserError
from src.core.targets import COLUMNS
from tests.helpers.infer_runs import train_small

CHANGES = {
    "gru": {"sequence": "gru"},
    "transformer": {"sequence": "transformer"},
    "each slice alone": {"sequence": "none"},
    "attention": {"pooling": "attention"},
    "a wider head": {"hidden": 12},
    "another backbone": {"backbone": "test_resnet"},
    "one target": {"targets": "liver"},
    "one network per target": {"mode": "single"},
    "metric as loss": {"loss": "metric"},
    "plain loss": {"loss": "plain"},
    "plain loss, reweighed": {"loss": "plain", "reweigh": True},
    "slices": {"slice_loss": 1.0},
    "organs": {"organ_loss": 1.0, "organ_slices": 2},
    "smoothing": {"smoothing": 0.2},
    "epochs": {"epochs": 2},
    "batch": {"batch": 2},
    "accumulation": {"accumulation": 2},
    "batch statistics of parts": {"micro_batch": 4},
    "organs in parts": {"organ_loss": 1.0, "organ_slices": 2, "micro_batch": 4},
    "rate": {"lr": "2e-3"},
    "rate of the encoder": {"encoder_lr_scale": 0.5},
    "rate of layers": {"layer_decay": 0.5},
    "warm-up": {"warmup_epochs": 0.0},
    "decay": {"weight_decay": 10.0},
    "clipping": {"clip": 1e-3},
    "average of weights": {"ema_decay": 0.0},
    "dropout": {"dropout": 0.7},
    "class balance": {"class_balance": 0.8},
    "mixup": {"mixup": 1.0},
    "cutmix": {"cutmix": 1.0},
    "flips": {"flip": 0.0},
    "quarter turns": {"rotate90": 0.0},
    "affine": {"affine": 0.0},
    "gamma": {"gamma": 0.0},
    "coarse dropout": {"coarse_dropout": 1.0},
    "neighbours": {"neighbours": 3},
    "far neighbours": {"neighbours": 3, "neighbour_mm": 40},
    "more slices": {"slices": 5},
    "distance of slices": {"spacing_mm": 60},
    "slices of organs": {"z_range": "organs"},
    "crop": {"crop": 40},
    "crop of the liver": {"in_plane": "liver"},
    "each kidney": {"z_range": "each_kidney", "in_plane": "each_kidney"},
    "masks": {"masks": "any"},
    "mask of each organ": {"masks": "each"},
    "one window": {"windows": "soft"},
    "offsets": {"offsets": 2},
    "flips when predicting": {"tta": "none h"},
    "seed": {"seed": 7},
}
"""Changed options by the name of the test."""

ELSEWHERE = {
    *("data", "labels", "folds", "output", "fold", "resume"),  # tests/scripts/test_train_cls.py
    *("encoder", "image_labels", "cache", "masks_from", "doubtful"),  # test_run.py, test_stacks.py
    *("workers", "precision"),  # tests/scripts/test_train_cls.py, tests/core/test_runtime.py: the same result
    "execution",  # tests/nn/test_execution.py
    "drop_path",  # below, with a backbone that has it
    "first_weights",  # tests/cls/test_run.py
    "track",  # tests/nn/test_tracking.py
    *("validate_every", "keep"),  # tests/cls/test_validation.py
}
"""Options that are tested elsewhere."""


def predictions(run: Path) -> np.ndarray:
    return pd.read_csv(run / "oof.csv")[list(COLUMNS)].to_numpy()


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory) -> np.ndarray:
    """Out-of-fold predictions of fold 0 with nothing changed."""
    output = tmp_path_factory.mktemp("plain") / "run"
    return predictions(train_small(tiny, output, "--fold 0 --lr 1e-3 --batch 4"))


@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
def test_train_cls_option_changes_predictions(run_arguments, tmp_path, plain, what):
    train_cls.main(run_arguments(**({"fold": "0", "epochs": 1, "lr": "1e-3"} | CHANGES[what])))
    own = predictions(tmp_path / "run")
    assert own.shape == plain.shape and np.isfinite(own).all()
    assert np.abs(own - plain).max() > 1e-7
    for span in (slice(0, 2), slice(2, 4), slice(4, 7), slice(7, 10), slice(10, 13)):
        assert own[:, span].sum(axis=1) == pytest.approx(1.0)


def test_train_cls_drop_path_changes_predictions(run_arguments, tmp_path):
    given = {"fold": "0", "epochs": 1, "lr": "1e-3", "backbone": "test_convnext"}
    for name, rate in (("all", 0.0), ("some", 0.9)):
        train_cls.main(run_arguments(name, **given, drop_path=rate))
    assert np.abs(predictions(tmp_path / "all") - predictions(tmp_path / "some")).max() > 1e-7


def test_every_option_is_tested():
    changed = {name for changes in CHANGES.values() for name in changes}
    assert changed | ELSEWHERE == {field.name for field in fields(ClassifierOptions)}
    assert not changed & ELSEWHERE


def test_train_cls_gives_the_same_predictions_again(run_arguments, tmp_path, plain):
    train_cls.main(run_arguments(fold="0", epochs=1, lr="1e-3"))
    assert (predictions(tmp_path / "run") == plain).all()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (
            {"loss": "weighted", "reweigh": True},
            "--reweigh would weigh the classes twice, --loss weighted has",
        ),
        ({"loss": "metric", "reweigh": True}, "--reweigh would weigh the classes twice"),
        ({"loss": "metric", "mode": "single"}, "--loss metric takes any injury from all targets"),
        ({"loss": "metric", "targets": "liver"}, "--loss metric takes any injury from all targets"),
        ({"z_range": "own"}, "needs --mode single"),
        ({"in_plane": "each_kidney"}, "each_kidney must be the region of both --z-range and --in-plane"),
        (
            {"in_plane": "each_kidney", "z_range": "each_kidney", "spacing_mm": 5},
            "--spacing-mm takes slices of one range",
        ),
        ({"image_labels": "labels.csv"}, "--image-labels are used by --slice-loss"),
        ({"neighbours": 2}, "--neighbours must be odd"),
        ({"windows": "bone"}, "has no window bone; it has"),
        ({"targets": "heart"}, r"--targets: expected values \(bowel"),
        ({"masks": "all"}, "--masks: expected none, any or each"),
        ({"masks": "any", "masks_from": "predicted"}, "predicted_masks, which the options need"),
        ({"layer_decay": 0.0}, "--layer-decay must be above 0"),
        ({"class_balance": 2}, "--class-balance must be at least 0 and at most 1"),
    ],
)
def test_train_cls_refuses_contradictions_in_one_line(run_arguments, changes, part):
    with pytest.raises(UserError, match=part) as caught:
        train_cls.main(run_arguments(fold="0", **changes))
    assert "\n" not in str(caught.value)
