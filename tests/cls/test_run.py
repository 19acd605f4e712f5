"""Runs of train_cls.py on the tiny phantom: modes, masks, encoders, slice targets, and their predictions."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import train_cls
from src.cls import run as cls_run
from src.cls.fold_models import read_about
from src.cls.model import load_classifier, metric_shift
from src.core.errors import UserError
from src.core.run_folder import only_writer
from src.core.targets import COLUMNS, TARGETS
from src.data.labels import read_probabilities
from src.data.prepared import PreparedDataset
from tests.helpers.doubtful_sets import copy_doubtful, series_of
from tests.helpers.infer_runs import submit
from tests.helpers.training_runs import assert_equal
from tests.helpers.two_processes import one_thread, run_two


def predictions(run: Path) -> np.ndarray:
    return pd.read_csv(run / "oof_series.csv")[list(COLUMNS)].to_numpy()


def test_train_folds_slice_loss_uses_image_labels(tiny, run_arguments, tmp_path):
    given = {"fold": "0", "epochs": 1, "lr": "1e-3", "slice_loss": 1.0}
    train_cls.main(run_arguments("areas", **given))
    train_cls.main(run_arguments("marks", **given, image_labels=tiny.marks))
    areas, marks = (predictions(tmp_path / name) for name in ("areas", "marks"))
    assert np.abs(areas - marks).max() > 1e-6
    # they are an input: a run is not continued with other ones
    pd.read_csv(tiny.marks).iloc[1:].to_csv(tmp_path / "fewer.csv", index=False)
    with pytest.raises(UserError, match="made with other data"):
        train_cls.main(run_arguments("marks", **(given | {"fold": "1"}), image_labels=tmp_path / "fewer.csv"))


def test_train_folds_single_mode_trains_one_network_per_target(tiny, run_arguments, tmp_path):
    changes = {"mode": "single", "targets": "liver spleen", "z_range": "own", "in_plane": "own"}
    train_cls.main(run_arguments(fold="0", epochs=1, **changes))
    folder = tmp_path / "run" / "fold0"
    specs = {path.parent.name: load_classifier(path)[1] for path in folder.glob("*/model.safetensors")}
    assert {name: (spec.targets, spec.view.z_range, spec.view.in_plane) for name, spec in specs.items()} == {
        "liver": (("liver",), "liver", "liver"),
        "spleen": (("spleen",), "spleen", "spleen"),
    }
    table = pd.read_csv(tmp_path / "run" / "oof_series.csv")
    assert table.liver_low.nunique() > 1 and table.kidney_low.isna().all()


def test_train_folds_single_mode_ignores_labels_of_other_targets(tiny, run_arguments, tmp_path):
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


def test_train_folds_single_mode_refuses_other_options(run_arguments, tmp_path):
    train_cls.main(run_arguments(fold="0", epochs=1, mode="single", targets="liver spleen"))
    (tmp_path / "run/fold0/oof_series.csv").unlink()  # as an interruption leaves it
    with pytest.raises(UserError, match="made with --lr"):
        train_cls.main(run_arguments(fold="0", epochs=1, mode="single", targets="liver spleen", lr="1e-2"))


def test_train_folds_without_masks_uses_marked_slices(tiny, run_arguments, tmp_path, capsys):
    folder = tmp_path / "prepared"
    shutil.copytree(tiny.prepared, folder, ignore=shutil.ignore_patterns("masks"))
    given = {"data": folder, "fold": "0", "epochs": 1, "slice_loss": 1.0}
    train_cls.main(run_arguments(**given, image_labels=tiny.marks))
    assert "only marked slices have slice targets" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no masks, which the options need"):
        train_cls.main(run_arguments("other", **given))


def test_train_folds_organ_loss_is_finite_with_padding(run_arguments, tmp_path):
    changes = {"spacing_mm": 150, "slices": 6, "organ_loss": 1.0, "organ_slices": 6, "epochs": 1}
    train_cls.main(run_arguments(fold="0", **changes))
    assert np.isfinite(pd.read_csv(tmp_path / "run/fold0/metrics.csv").organs).all()


def test_train_folds_plain_loss_starts_at_the_prior(run_arguments, tmp_path):
    train_cls.main(run_arguments(fold="0", epochs=1, lr="1e-9", loss="plain", reweigh=True, smoothing=0))
    model, spec = load_classifier(tmp_path / "run/fold0/model.safetensors")
    begun = torch.log_softmax(model.classifier.bias.detach()[:2] + metric_shift(spec)[:2], dim=0).exp()
    assert begun[1].item() == pytest.approx(spec.prior["bowel_injury"], abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"neighbours": 3, "neighbour_mm": 25, "spacing_mm": 45, "slices": 9, "offsets": 2, "windows": "wide"},
        {"z_range": "organs", "masks": "each", "offsets": 2},
        {"mode": "single", "z_range": "own", "in_plane": "own"},
    ],
    ids=["distances", "organs", "single"],
)
def test_infer_gives_the_out_of_fold_predictions(tiny, run_arguments, tmp_path, options):
    train_cls.main(run_arguments(fold="0", epochs=1, **options))
    oof = pd.read_csv(tmp_path / "run" / "oof.csv")
    sample = pd.read_csv(tiny.sample).assign(patient_id=oof.patient_id[:3])
    sample.to_csv(tmp_path / "sample.csv", index=False)
    predicted = submit(tiny.prepared, tmp_path / "run", tmp_path / "sample.csv", tmp_path)
    np.testing.assert_allclose(predicted, oof[list(COLUMNS)][:3], atol=1e-5)


@pytest.fixture
def doubtful_set(tiny, tmp_path) -> SimpleNamespace:
    """The tiny phantom with two doubtful series: the only one of `patient`, and one of two of another."""
    by_patient = series_of(tiny.prepared)
    patient = min(name for name, series in by_patient.items() if len(series) == 1)
    several = min(name for name, series in by_patient.items() if len(series) > 1)
    series = [by_patient[patient][0], by_patient[several][0]]
    return SimpleNamespace(
        data=copy_doubtful(tiny.prepared, tmp_path / "prepared", series), patient=patient, series=series
    )


def training_patients(run: Path) -> set[str]:
    return {
        patient
        for fold in (0, 1)
        for patient in read_about(run / f"fold{fold}" / "model.safetensors")["training_patients"]
    }


def test_train_folds_predicts_doubtful_series_without_training_on_them(
    doubtful_set, run_arguments, tmp_path, capsys
):
    data = doubtful_set.data
    train_cls.main(run_arguments("skip", data=data, epochs=1))
    assert capsys.readouterr().out.count("doubtful series: 2, left out of training") == 1
    predicted = read_probabilities(tmp_path / "skip" / "oof_series.csv")
    assert sorted(predicted.series_id) == sorted(PreparedDataset.open(data).series.series_id)
    assert predicted.notna().all(axis=None)
    assert len(read_probabilities(tmp_path / "skip" / "oof.csv")) == 10
    assert training_patients(tmp_path / "skip") == set(predicted.patient_id) - {doubtful_set.patient}
    # the networks are those of a data set without these series
    table = pd.read_csv(data / "series.csv", dtype=str)
    table["status"] = table["status"].replace("doubtful", "skipped")
    table.to_csv(data / "series.csv", index=False)
    train_cls.main(run_arguments("without", data=data, epochs=1))
    for fold in ("fold0", "fold1"):
        runs = (tmp_path / "skip", tmp_path / "without")
        assert_equal(*(load_classifier(run / fold / "model.safetensors")[0].state_dict() for run in runs))


def test_train_folds_keep_trains_on_doubtful_series(doubtful_set, run_arguments, tmp_path, capsys):
    given = {"data": doubtful_set.data, "epochs": 1}
    train_cls.main(run_arguments(**given, doubtful="keep"))
    assert "doubtful series: 2, trained on" in capsys.readouterr().out
    assert doubtful_set.patient in training_patients(tmp_path / "run")
    with pytest.raises(UserError, match=r"made with other data \(series, --doubtful"):
        train_cls.main(run_arguments(**given))
    train_cls.main(run_arguments(**given, doubtful="keep"))
    assert "fold0 is finished" in capsys.readouterr().out


def test_train_folds_names_the_option_where_all_series_are_doubtful(tiny, run_arguments, tmp_path):
    prepared = PreparedDataset.open(tiny.prepared).series
    folds = pd.read_csv(tiny.folds, dtype={"patient_id": str}).set_index("patient_id").fold
    others = prepared.series_id[prepared.patient_id.map(folds) != 0].tolist()
    one_fold = copy_doubtful(tiny.prepared, tmp_path / "one_fold", others)
    with pytest.raises(UserError, match=r"fold0: 0 training and .*--doubtful keep"):
        train_cls.main(run_arguments(data=one_fold, epochs=1))
    every = copy_doubtful(tiny.prepared, tmp_path / "every", prepared.series_id.tolist())
    with pytest.raises(UserError, match=r"all .* series of .* are doubtful.*--doubtful keep"):
        train_cls.main(run_arguments("other", data=every, epochs=1))
    train_cls.main(run_arguments("kept", data=every, epochs=1, fold=0, doubtful="keep"))


def test_train_folds_continues_with_another_doubtful_where_no_series_is(run_arguments, capsys):
    train_cls.main(run_arguments(fold="0", epochs=1))
    train_cls.main(run_arguments(fold="0", epochs=1, doubtful="keep"))
    assert "fold0 is finished" in capsys.readouterr().out


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


def test_build_optimizer_layer_decay_lowers_rates_near_the_input(run_arguments, tmp_path):
    train_cls.main(run_arguments(fold="0", epochs=1, layer_decay=0.5, encoder_lr_scale=0.5))
    groups = torch.load(tmp_path / "run/fold0/last.pt", weights_only=True)["optimizer"]["param_groups"]
    scales = [group["lr_scale"] for group in groups if "lr_scale" in group]
    assert min(scales) < 0.1 and max(scales) == 0.5
    assert any("lr_scale" not in group for group in groups), "the head learns at the full rate"


def test_train_folds_cache_does_not_change_predictions(run_arguments, tmp_path):
    for name, cache in (("plain", {}), ("cached", {"cache": tmp_path / "cache", "workers": 1})):
        train_cls.main(run_arguments(name, fold="0", epochs=1, **cache))
    assert (predictions(tmp_path / "plain") == predictions(tmp_path / "cached")).all()
    assert list((tmp_path / "cache").rglob("*.npy"))


def test_train_folds_refuses_a_fold_in_use(run_arguments, tmp_path):
    with only_writer(tmp_path / "run" / "fold0"), pytest.raises(UserError, match="another run is writing"):
        train_cls.main(run_arguments(fold="0", epochs=1))


@pytest.mark.slow
def test_train_folds_on_two_processes_trains_like_one(run_arguments, tmp_path):
    """With a backbone that normalises every image alone, and no dropout."""
    steady = {"backbone": "test_convnext", "fold": "0", "dropout": 0.0, "precision": "fp32", "epochs": 2}
    with one_thread():
        train_cls.main(run_arguments("one", **steady))
    shared = run_two("train_cls.py", run_arguments("two", **steady))
    assert shared.returncode == 0, shared.stderr[-2000:]
    one, two = (pd.read_csv(tmp_path / run / "fold0/metrics.csv") for run in ("one", "two"))
    for name in ("loss", *TARGETS):
        assert two[name].to_numpy() == pytest.approx(one[name].to_numpy(), rel=1e-4), name
    assert predictions(tmp_path / "two") == pytest.approx(predictions(tmp_path / "one"), rel=1e-3)
