"""Features of slices for the second level: what they hold, which networks may compute them, their file."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from src.cls import second_features
from src.cls.second_features import (
    FirstNetwork,
    SliceFeatures,
    ViewFeatures,
    compute_features,
    load_features,
    save_features,
)
from src.core.errors import UserError
from src.core.runtime import Runtime
from src.core.targets import COLUMNS
from src.data.prepared import PreparedDataset
from tests.helpers.second_level_runs import record_patients


def read_oof(first) -> pd.DataFrame:
    return pd.read_csv(first / "oof_series.csv", dtype={"patient_id": str, "series_id": str})


def compute(tiny, networks, series) -> SliceFeatures:
    prepared = PreparedDataset.open(tiny.prepared)
    return compute_features(networks, prepared, None, series, Runtime.create("fp32"), workers=0)


def test_compute_features_gives_the_out_of_fold_probabilities_as_base(tiny, first):
    for fold, rows in read_oof(first).groupby("fold"):
        network = FirstNetwork.read(first / f"fold{fold}" / "model.safetensors")
        features = compute(tiny, [network], rows[["patient_id", "series_id"]])
        (view,) = features.views
        assert view.features.shape == (len(rows), 4, 14)
        assert rows[list(COLUMNS)].to_numpy() == pytest.approx(features.base.numpy(), abs=1e-5)


def test_compute_features_from_the_cache_equal_those_from_png(tiny, first, tmp_path):
    fold, rows = next(iter(read_oof(first).groupby("fold")))
    network = FirstNetwork.read(first / f"fold{fold}" / "model.safetensors")
    series, prepared = rows[["patient_id", "series_id"]], PreparedDataset.open(tiny.prepared)
    runtime = Runtime.create("fp32")
    cached = compute_features([network], prepared, None, series, runtime, workers=0, cache=tmp_path)
    assert torch.equal(cached.views[0].features, compute(tiny, [network], series).views[0].features)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == len(series)


def test_compute_features_refuses_a_series_of_a_training_patient(tiny, first):
    network = FirstNetwork.read(first / "fold0" / "model.safetensors")
    trained = read_oof(first).query("fold == 1").iloc[[0]]
    with pytest.raises(UserError, match=f"was trained on patient {trained.patient_id.iloc[0]}, so it cannot"):
        compute(tiny, [network], trained)


@pytest.mark.parametrize("patients", [None, [], [10004], "10004"], ids=["none", "empty", "numbers", "text"])
def test_first_network_must_record_its_training_patients(first, tmp_path, patients):
    path = tmp_path / "model.safetensors"
    shutil.copyfile(first / "fold0" / "model.safetensors", path)
    record_patients(path, patients)
    with pytest.raises(UserError, match="does not record its training patients"):
        FirstNetwork.read(path)


def test_compute_features_refuses_features_that_are_not_finite(tiny, first, monkeypatch):
    monkeypatch.setattr(
        second_features, "probabilities", lambda logits, _: torch.full_like(logits, torch.inf)
    )
    rows = read_oof(first).query("fold == 0")
    network = FirstNetwork.read(first / "fold0" / "model.safetensors")
    with pytest.raises(UserError, match=r"features of .*/.* are not finite: give --precision fp32"):
        compute(tiny, [network], rows)


def test_first_network_copy_to_notices_a_file_that_has_changed(first, tmp_path):
    network = FirstNetwork.read(first / "fold0" / "model.safetensors")
    with pytest.raises(UserError, match="was rewritten while the second level was running"):
        replace(network, digest="0").copy_to(tmp_path / "copy" / "model.safetensors")


def test_load_features_takes_a_whole_file_of_the_same_key_only(tmp_path, capsys):
    series = pd.DataFrame({"patient_id": ["1", "2"], "series_id": ["3", "4"], "fold": 0})
    rng = np.random.default_rng(0)
    features, base = (torch.from_numpy(rng.normal(size=shape)) for shape in ((2, 4, 3), (2, 13)))
    path = tmp_path / "fold0.safetensors"
    assert load_features(path, series, "key") is None and not capsys.readouterr().out
    padding = torch.zeros(2, 4, dtype=torch.bool)
    views = ViewFeatures(features, padding), ViewFeatures(features[:, :2, :1], padding[:, :2])
    save_features(path, SliceFeatures(series, views, base), "key")
    loaded = load_features(path, series, "key")
    assert all(
        torch.equal(one.features, other.features) for one, other in zip(loaded.views, views, strict=True)
    )
    assert torch.equal(loaded.base, base)
    assert load_features(path, series, "other") is None
    assert "was made from other inputs: it is made again" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-8])
    assert load_features(path, series, "key") is None
    assert "cannot be read as features of a fold" in capsys.readouterr().out
