"""First weights and encoders of train_cls.py: what a fold starts from, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch

import train_cls
from src.cls.model import load_classifier
from src.core.errors import UserError
from src.core.targets import COLUMNS
from src.data.labels import read_labels
from src.data.prepared import PreparedDataset
from src.nn.encoder import create_encoder
from src.nn.imagenet import read_package
from tests.helpers.encoder_files import write_encoder
from tests.helpers.infer_runs import submit
from tests.helpers.training_runs import assert_equal


def test_train_folds_takes_encoder_kernels_by_window(tiny, run_arguments, tmp_path):
    prepared = PreparedDataset.open(tiny.prepared)
    greys = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "windows": prepared.windows}
    encoder = write_encoder(tmp_path / "encoder.safetensors", **greys)
    still = {"encoder": tmp_path / "encoder.safetensors", "encoder_lr_scale": 0.0, "backbone": "resnet10t"}
    swapped = f"{prepared.windows[2]} {prepared.windows[0]}"
    train_cls.main(run_arguments(fold="0", epochs=1, windows=swapped, masks="any", **still))
    model, spec = load_classifier(tmp_path / "run/fold0/model.safetensors")
    (first, own), *others = encoder.named_parameters()
    kernel = model.encoder.get_parameter(first)
    assert all(torch.equal(model.encoder.get_parameter(name), value) for name, value in others)
    torch.testing.assert_close(kernel[:, 0], own[:, 2] * 1.5)
    torch.testing.assert_close(kernel[:, 1], own[:, 0] * 1.5)
    # the mask's channel is zero, though the encoder has as many channels as the network
    assert not kernel[:, 2].any() and spec.mean == (0.6, 0.4) and spec.std == (0.4, 0.2)


def test_train_folds_starts_from_first_weights(run_arguments, tmp_path, capsys):
    """ImageNet weights of the package, beside masks; the image kernels keep their size."""
    given = {"fold": "0", "epochs": 1, "backbone": "tf_efficientnet_lite0", "encoder_lr_scale": 0.0}
    windows = {"windows": "soft organ wide", "masks": "any"}
    train_cls.main(run_arguments(**given, **windows, first_weights="package"))
    assert (
        "first weights: ImageNet weights of tf_efficientnet_lite0 (package): 294" in capsys.readouterr().out
    )
    model, spec = load_classifier(tmp_path / "run/fold0/model.safetensors")
    kernel = read_package(model.encoder)["conv_stem.weight"]
    assert torch.equal(model.encoder.conv_stem.weight[:, :3], kernel)
    assert not model.encoder.conv_stem.weight[:, 3:].any()
    assert spec.mean == (127 / 255,) * 3 and spec.std == (128 / 255,) * 3


def test_train_folds_says_that_first_weights_are_random(run_arguments, capsys):
    train_cls.main(run_arguments(fold="0", epochs=1))
    assert capsys.readouterr().out.count("first weights: random (--first-weights imagenet") == 1


def test_train_folds_prefers_the_encoder_to_first_weights(run_arguments, tmp_path, capsys):
    write_encoder(tmp_path / "encoder.safetensors")
    given = {"encoder": tmp_path / "encoder.safetensors", "first_weights": "imagenet"}
    train_cls.main(run_arguments(fold="0", epochs=1, **given))
    assert f"first weights: {given['encoder']}: " in capsys.readouterr().out


def test_train_folds_takes_a_file_of_weights_which_is_an_input(run_arguments, tmp_path):
    torch.manual_seed(5)
    torch.save(create_encoder("resnet10t", 3).state_dict(), tmp_path / "weights.pth")
    given = {"backbone": "resnet10t", "first_weights": tmp_path / "weights.pth", "encoder_lr_scale": 0.0}
    train_cls.main(run_arguments(fold="0", epochs=1, windows="soft organ wide", **given))
    model, spec = load_classifier(tmp_path / "run/fold0/model.safetensors")
    assert torch.equal(model.encoder.conv1[0].weight, torch.load(given["first_weights"])["conv1.0.weight"])
    assert spec.mean == (0.485, 0.456, 0.406)  # colours of timm's weights
    torch.save(create_encoder("resnet10t", 3).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="made with other data"):
        train_cls.main(run_arguments(fold="1", epochs=1, windows="soft organ wide", **given))


def test_train_folds_refuses_first_weights_that_are_no_file(run_arguments):
    with pytest.raises(UserError, match=r"no file imagnet: expected weights .*also takes imagenet, package"):
        train_cls.main(run_arguments(first_weights="imagnet"))


def test_train_folds_refuses_first_weights_before_it_deletes_or_writes(run_arguments, tmp_path):
    train_cls.main(run_arguments(fold="0", epochs=1))
    model = tmp_path / "run" / "fold0" / "model.safetensors"
    for first, message in {"package": "is for tf_efficientnet_lite0", model: "would delete"}.items():
        with pytest.raises(UserError, match=message):
            train_cls.main(run_arguments(fold="0", epochs=1, resume="never", first_weights=first))
    load_classifier(model)
    with pytest.raises(UserError, match="is for tf_efficientnet_lite0"):
        train_cls.main(run_arguments("other", first_weights="package"))
    assert not (tmp_path / "other").exists()


def test_train_folds_refuses_a_fold_model_that_learnt_labels_of_the_held_out(run_arguments, tmp_path):
    train_cls.main(run_arguments(fold="0", epochs=1))
    first = {"first_weights": tmp_path / "run" / "fold0" / "model.safetensors", "epochs": 1}
    with pytest.raises(UserError, match=r"labels of 5 of the 5 held-out patients of fold1"):
        train_cls.main(run_arguments("other", **first))
    train_cls.main(run_arguments("other", fold="0", **first))


def test_train_folds_warns_of_patients_that_first_weights_have_seen(tiny, run_arguments, tmp_path, capsys):
    patient = read_labels(tiny.labels).patient_id[0]
    fold = pd.read_csv(tiny.folds, dtype={"patient_id": str}).set_index("patient_id").fold[patient]
    write_encoder(tmp_path / "encoder.safetensors", patients=(patient,))
    first = {"first_weights": tmp_path / "encoder.safetensors"}
    train_cls.main(run_arguments(fold=str(fold), epochs=1, **first))
    assert "pre-trained on 1 of the 5 held-out patients" in capsys.readouterr().err


def test_train_folds_loads_no_first_weights_to_continue(run_arguments, tmp_path, capsys):
    given = {"fold": "0", "backbone": "tf_efficientnet_lite0", "first_weights": "package"}
    arguments = run_arguments(**given, epochs=2)
    train_cls.main(arguments)
    fold = tmp_path / "run" / "fold0"
    expected, _ = load_classifier(fold / "model.safetensors")
    for name in ("oof_series.csv", "model.safetensors"):  # as an interruption leaves it
        (fold / name).unlink()
    capsys.readouterr()
    train_cls.main(arguments)
    assert "first weights" not in capsys.readouterr().out
    assert_equal(expected.state_dict(), load_classifier(fold / "model.safetensors")[0].state_dict())


@pytest.mark.parametrize(
    "backbone",
    [
        *("coat_lite_tiny", "maxvit_nano_rw_256", "coatnet_nano_rw_224", "swin_s3_tiny_224"),
        *("vit_tiny_patch16_224", "test_vit"),
    ],
)
def test_train_folds_trains_transformers_at_any_size(tiny, run_arguments, tmp_path, backbone):
    train_cls.main(run_arguments(fold="0", epochs=1, backbone=backbone, crop=32, tta="none"))
    predicted = pd.read_csv(tmp_path / "run" / "oof_series.csv")
    assert np.isfinite(predicted[list(COLUMNS)].to_numpy()).all()
    submission = submit(tiny.raw, tmp_path / "run", tiny.sample, tmp_path)
    assert np.isfinite(submission[list(COLUMNS)].to_numpy()).all()
