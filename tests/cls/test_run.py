"""Runs of train_cls.py on the tiny phantom: modes, masks, encoders, slice targets, and their predictions."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import infer
import score
import train_cls
from src.cls import run as cls_run
from src.cls.fold_models import find_folds
from src.cls.model import load_classifier, metric_shift
from src.core.errors import UserError
from src.core.run_folder import only_writer
from src.core.targets import COLUMNS, TARGETS
from src.data.prepared import PreparedDataset
from src.nn.encoder import EncoderFile, create_encoder, first_kernel, save_encoder
from src.score.prior import weight_aware_prior

SCRIPT = Path(__file__).parents[2] / "train_cls.py"


def predictions(run: Path) -> np.ndarray:
    return pd.read_csv(run / "oof_series.csv")[list(COLUMNS)].to_numpy()


def test_slice_loss_uses_image_labels(tiny, run_arguments, tmp_path):
    given = {"fold": "0", "epochs": 1, "lr": "1e-3", "slice_loss": 1.0}
    train_cls.main(run_arguments("areas", **given))
    train_cls.main(run_arguments("marks", **given, image_labels=tiny.marks))
    areas, marks = (predictions(tmp_path / name) for name in ("areas", "marks"))
    assert np.abs(areas - marks).max() > 1e-6
    # they are an input: a run is not continued with other ones
    pd.read_csv(tiny.marks).iloc[1:].to_csv(tmp_path / "fewer.csv", index=False)
    with pytest.raises(UserError, match="made with other data"):
        train_cls.main(run_arguments("marks", **(given | {"fold": "1"}), image_labels=tmp_path / "fewer.csv"))


def test_single_mode_trains_one_network_per_target(tiny, run_arguments, tmp_path):
    changes = {"mode": "single", "targets": "liver spleen", "z_range": "own", "in_plane": "own"}
    train_cls.main(run_arguments(fold="0", epochs=1, **changes))
    folder = tmp_path / "run" / "fold0"
    specs = {path.parent.name: load_classifier(path)[1] for path in folder.glob("*/model.safetensors")}
    assert {name: (spec.targets, spec.view.z_range, spec.view.in_plane) for name, spec in specs.items()} == {
        "liver": (("liver",), "liver", "liver"),
        "spleen": (("spleen",), "spleen", "spleen"),
    }
    table = pd.read_csv(tmp_path / "run" / "oof_series.csv", dtype={"patient_id": str})
    assert table.liver_low.nunique() > 1 and table.kidney_low.isna().all()
    patients = pd.read_csv(tmp_path / "run" / "oof.csv", dtype={"patient_id": str})
    folds = pd.read_csv(tiny.folds, dtype={"patient_id": str})
    labels = pd.read_csv(tiny.labels, dtype={"patient_id": str})
    prior = weight_aware_prior(labels[labels.patient_id.isin(folds.patient_id[folds.fold != 0])])
    assert patients.kidney_low.to_numpy() == pytest.approx(prior.kidney_low)


def test_single_mode_ignores_the_labels_of_other_targets(tiny, run_arguments, tmp_path):
    labels = pd.read_csv(tiny.labels, dtype={"patient_id": str})
    others = [column for names in TARGETS.values() for column in names if not column.startswith("liver")]
    turned = labels.assign(**labels[others].iloc[::-1].set_axis(labels.index))
    healthy = turned[[names[0] for names in TARGETS.values()]]
    turned.assign(any_injury=1 - healthy.min(axis=1)).to_csv(tmp_path / "turned.csv", index=False)
    assert not turned[others].equals(labels[others])
    given = {"fold": "0", "epochs": 1, "mode": "single", "targets": "liver", "slice_loss": 1.0}
    tables = []
    for name, path in (("own", tiny.labels), ("turned", tmp_path / "turned.csv")):
        train_cls.main(run_arguments(name, **given, class_balance=1.0, lr="1e-3", labels=path))
        tables.append(pd.read_csv(tmp_path / name / "oof_series.csv")[list(TARGETS["liver"])])
    pd.testing.assert_frame_equal(*tables)


def test_single_mode_refuses_to_continue_with_other_options(run_arguments, tmp_path):
    train_cls.main(run_arguments(fold="0", epochs=1, mode="single", targets="liver spleen"))
    (tmp_path / "run/fold0/oof_series.csv").unlink()  # as an interruption leaves it
    with pytest.raises(UserError, match="made with --lr"):
        train_cls.main(run_arguments(fold="0", epochs=1, mode="single", targets="liver spleen", lr="1e-2"))


def test_find_folds_skips_folds_that_lack_a_network(tiny, run_arguments, tmp_path):
    train_cls.main(run_arguments(epochs=1, mode="single", targets="liver spleen"))
    run = tmp_path / "run"
    assert [len(networks) for networks in find_folds(run)] == [2, 2]
    (run / "fold1/spleen/model.safetensors").unlink()
    assert [len(networks) for networks in find_folds(run)] == [2]
    (run / "fold0/liver/model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no finished fold"):
        find_folds(run)


def test_missing_targets_of_a_run_come_from_other_runs(tiny, run_arguments, tmp_path):
    train_cls.main(run_arguments("few", fold="0", epochs=1, targets="liver"))
    train_cls.main(run_arguments("all", fold="0", epochs=1))
    tables = {}
    for name, runs in (("all", ["all"]), ("both", ["few", "all"])):
        models = " ".join(str(tmp_path / run) for run in runs)
        output = tmp_path / f"{name}.csv"
        infer.main(f"--input {tiny.raw} --models {models} --sample {tiny.sample} --output {output}".split())
        tables[name] = pd.read_csv(output)
    kidney, liver = list(TARGETS["kidney"]), list(TARGETS["liver"])
    np.testing.assert_allclose(tables["both"][kidney], tables["all"][kidney], atol=1e-6)
    assert not np.allclose(tables["both"][liver], tables["all"][liver])
    given = f"--labels {tiny.labels} --folds {tiny.folds} --json {tmp_path}/score.json --rounds 10"
    losses = {}
    for name, runs in (("all", ["all"]), ("both", ["few", "all"])):
        score.main(["--oof", *(f"{tmp_path}/{run}/oof_series.csv" for run in runs), *given.split()])
        losses[name] = json.loads((tmp_path / "score.json").read_text())["losses"]
    assert losses["both"]["kidney"] == pytest.approx(losses["all"]["kidney"])
    assert losses["both"]["liver"] != pytest.approx(losses["all"]["liver"])


def test_encoder_kernels_are_taken_by_window(tiny, run_arguments, tmp_path):
    prepared = PreparedDataset.open(tiny.prepared)
    encoder = create_encoder("test_efficientnet", 3)
    about = EncoderFile("test_efficientnet", 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), prepared.windows)
    save_encoder(tmp_path / "encoder.safetensors", encoder, about)
    still = {"encoder": tmp_path / "encoder.safetensors", "encoder_lr_scale": 0.0}
    swapped = f"{prepared.windows[2]} {prepared.windows[0]}"
    train_cls.main(run_arguments(fold="0", epochs=1, windows=swapped, masks="any", **still))
    model, spec = load_classifier(tmp_path / "run/fold0/model.safetensors")
    own, kernel = first_kernel(encoder).detach(), first_kernel(model.encoder).detach()
    torch.testing.assert_close(kernel[:, 0], own[:, 2] * 1.5)
    torch.testing.assert_close(kernel[:, 1], own[:, 0] * 1.5)
    assert not kernel[:, 2].any() and spec.mean == (0.6, 0.4) and spec.std == (0.4, 0.2)


def test_mask_channels_never_take_the_kernel_of_a_window(tiny, run_arguments, tmp_path):
    prepared = PreparedDataset.open(tiny.prepared)
    encoder = create_encoder("test_efficientnet", 3)
    about = EncoderFile("test_efficientnet", 3, (0.5,) * 3, (0.25,) * 3, prepared.windows)
    save_encoder(tmp_path / "encoder.safetensors", encoder, about)
    still = {"encoder": tmp_path / "encoder.safetensors", "encoder_lr_scale": 0.0}
    two = " ".join(prepared.windows[:2])  # and a mask: as many channels as the encoder has
    train_cls.main(run_arguments(fold="0", epochs=1, windows=two, masks="any", **still))
    model, _ = load_classifier(tmp_path / "run/fold0/model.safetensors")
    assert not first_kernel(model.encoder)[:, 2].any()


def test_slice_targets_without_masks_are_the_marked_slices(tiny, run_arguments, tmp_path, capsys):
    folder = tmp_path / "prepared"
    shutil.copytree(tiny.prepared, folder, ignore=shutil.ignore_patterns("masks"))
    given = {"data": folder, "fold": "0", "epochs": 1, "slice_loss": 1.0}
    train_cls.main(run_arguments(**given, image_labels=tiny.marks))
    assert "only marked slices have slice targets" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no masks, which the options need"):
        train_cls.main(run_arguments("other", **given))


def test_organ_loss_is_finite_with_padding(run_arguments, tmp_path):
    changes = {"spacing_mm": 150, "slices": 6, "organ_loss": 1.0, "organ_slices": 6, "epochs": 1}
    train_cls.main(run_arguments(fold="0", **changes))
    assert np.isfinite(pd.read_csv(tmp_path / "run/fold0/metrics.csv").organs).all()


def test_plain_loss_starts_at_the_prior(run_arguments, tmp_path):
    train_cls.main(run_arguments(fold="0", epochs=1, lr="1e-9", loss="plain", reweigh=True, smoothing=0))
    model, spec = load_classifier(tmp_path / "run/fold0/model.safetensors")
    begun = torch.log_softmax(model.classifier.bias.detach()[:2] + metric_shift(spec)[:2], dim=0).exp()
    assert begun[1].item() == pytest.approx(spec.prior["bowel_injury"], abs=1e-4)


def test_infer_joins_the_networks_of_single_mode(tiny, run_arguments, tmp_path):
    train_cls.main(run_arguments(fold="0", epochs=1, mode="single", neighbours=3, spacing_mm=30, offsets=2))
    submission = tmp_path / "submission.csv"
    given = f"--models {tmp_path / 'run'} --sample {tiny.sample} --output {submission}"
    infer.main(f"--input {tiny.raw} {given}".split())
    table = pd.read_csv(submission)
    for names in TARGETS.values():
        assert table[list(names)].sum(axis=1).to_numpy() == pytest.approx(1.0)
        assert table[names[1]].nunique() == 3


def test_infer_gives_the_out_of_fold_predictions_of_prepared_series(tiny, run_arguments, tmp_path):
    """Also with slices at a distance, neighbours, padding and offsets."""
    options = {"neighbours": 3, "neighbour_mm": 25, "spacing_mm": 45, "slices": 9, "offsets": 2}
    train_cls.main(run_arguments(fold="0", epochs=1, windows="wide", **options))
    rows = {}
    for name, folder in (("raw", tiny.raw), ("prepared", tiny.prepared)):
        sample = pd.read_csv(tiny.sample)
        if name == "prepared":  # the training set: its patients, raw they lie in train_images
            patients = PreparedDataset.open(tiny.prepared).series.patient_id.unique()[:3]
            sample = sample.assign(patient_id=patients)
        sample.to_csv(tmp_path / f"{name}_sample.csv", index=False)
        given = f"--models {tmp_path / 'run'} --sample {tmp_path / f'{name}_sample.csv'}"
        infer.main(f"--input {folder} {given} --output {tmp_path / name}.csv".split())
        rows[name] = pd.read_csv(tmp_path / f"{name}.csv")
    oof = pd.read_csv(tmp_path / "run" / "oof.csv")
    both = rows["prepared"].merge(oof, on="patient_id", suffixes=("", "_oof"))
    for column in COLUMNS:
        assert both[column].to_numpy() == pytest.approx(both[f"{column}_oof"].to_numpy(), abs=1e-5)
    assert rows["raw"].liver_low.nunique() == 3


@pytest.mark.parametrize(
    "options",
    [
        {"z_range": "organs", "masks": "each", "offsets": 2},
        {"mode": "single", "z_range": "own", "in_plane": "own"},
    ],
)
def test_infer_gives_the_out_of_fold_predictions_of_series_with_masks(tiny, run_arguments, tmp_path, options):
    train_cls.main(run_arguments(fold="0", epochs=1, **options))
    oof = pd.read_csv(tmp_path / "run" / "oof.csv")
    sample = pd.read_csv(tiny.sample).assign(patient_id=oof.patient_id[:3])
    sample.to_csv(tmp_path / "sample.csv", index=False)
    given = f"--models {tmp_path / 'run'} --sample {tmp_path / 'sample.csv'} --output {tmp_path / 's.csv'}"
    infer.main(f"--input {tiny.prepared} {given}".split())
    both = pd.read_csv(tmp_path / "s.csv").merge(oof, on="patient_id", suffixes=("", "_oof"))
    for column in COLUMNS:
        assert both[column].to_numpy() == pytest.approx(both[f"{column}_oof"].to_numpy(), abs=1e-5)


def test_train_folds_refuses_a_patient_on_both_sides_of_a_fold(run_arguments, monkeypatch):
    read = cls_run.TrainingInputs.read.__func__

    def leaky(cls, options):
        inputs = read(cls, options)
        series = inputs.series.copy()
        patient = series.patient_id[series.patient_id.duplicated()].iloc[0]
        first = series.index[series.patient_id == patient][0]
        series.loc[first, "fold"] = 1 - series.fold[first]
        return type(inputs)(**{**inputs.__dict__, "series": series})

    monkeypatch.setattr(cls_run.TrainingInputs, "read", classmethod(leaky))
    with pytest.raises(UserError, match=r"is trained on \(series .*\) and held out \(series .*\)"):
        train_cls.main(run_arguments(fold="0", epochs=1))


def test_layer_decay_lowers_the_rate_of_layers_near_the_input(run_arguments, tmp_path):
    train_cls.main(run_arguments(fold="0", epochs=1, layer_decay=0.5, encoder_lr_scale=0.5))
    groups = torch.load(tmp_path / "run/fold0/last.pt", weights_only=True)["optimizer"]["param_groups"]
    scales = [group["lr_scale"] for group in groups if "lr_scale" in group]
    assert min(scales) < 0.1 and max(scales) == 0.5
    assert any("lr_scale" not in group for group in groups), "the head learns at the full rate"


def test_cache_does_not_change_predictions(run_arguments, tmp_path):
    for name, cache in (("plain", {}), ("cached", {"cache": tmp_path / "cache", "workers": 1})):
        train_cls.main(run_arguments(name, fold="0", epochs=1, **cache))
    assert (predictions(tmp_path / "plain") == predictions(tmp_path / "cached")).all()
    assert list((tmp_path / "cache").rglob("*.npy"))


def test_train_folds_refuses_an_output_in_use(run_arguments, tmp_path):
    with only_writer(tmp_path / "run"), pytest.raises(UserError, match="another run is writing"):
        train_cls.main(run_arguments(fold="0", epochs=1))


@pytest.mark.slow
def test_two_processes_train_like_one(run_arguments, tmp_path):
    """With a backbone that normalises every image alone, and no dropout."""
    steady = {"backbone": "test_convnext", "fold": "0", "dropout": 0.0, "precision": "fp32", "epochs": 2}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train_cls.main(run_arguments("one", **steady))
    torch.set_num_threads(threads)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    shared = subprocess.run(
        [*launcher, SCRIPT, *run_arguments("two", **steady)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shared.returncode == 0, shared.stderr[-2000:]
    one, two = (pd.read_csv(tmp_path / run / "fold0/metrics.csv") for run in ("one", "two"))
    for name in ("loss", *TARGETS):
        assert two[name].to_numpy() == pytest.approx(one[name].to_numpy(), rel=1e-4), name
    assert predictions(tmp_path / "two") == pytest.approx(predictions(tmp_path / "one"), rel=1e-3)
