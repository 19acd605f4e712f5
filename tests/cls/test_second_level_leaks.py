"""Leaks into a second level: each is planted here, and refused in one line."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from src.cls import feature_store, second_level
from src.cls.feature_store import FeatureStore, out_of_fold_features
from src.cls.run_folder import read_about
from src.cls.second_inputs import SecondInputs
from src.cls.second_options import SecondLevelOptions
from src.cls.slice_features import FirstLevelModel, SliceFeatures, describe_series
from src.core.errors import UserError
from src.core.runtime import Runtime
from tests.helpers.infer_runs import submit, train_small
from tests.helpers.second_level_runs import Interrupted, count_describing, tell_patients, train_second


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory):
    """A first-level run of both folds."""
    return train_small(tiny, tmp_path_factory.mktemp("first") / "run")


@pytest.fixture
def read_inputs(tiny, first, tmp_path):
    """The inputs of a second level on the run."""
    options = SecondLevelOptions((first,), tiny.prepared, tiny.labels, tiny.folds, tmp_path / "run")
    return SecondInputs.read(options, "fp32")


@pytest.fixture
def described(tiny, first, tmp_path, monkeypatch):
    """The folder of a run that was interrupted when both folds were described."""
    output = tmp_path / "described"
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(second_level, "_run_fold", lambda *_: (_ for _ in ()).throw(Interrupted))
        train_second(tiny, [first], output)
    return output


def refusal(work, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        work(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def collect(inputs: SecondInputs, output, sources=None):
    sources = list(inputs.sources.values()) if sources is None else sources
    runtime = Runtime.create("fp32")
    return out_of_fold_features(FeatureStore(output), sources, inputs.prepared, inputs.organs, runtime, 0)


def network(run, fold: int):
    return run / f"fold{fold}" / "model.safetensors"


def move_patient(tiny, path, patient: str | None = None) -> str:
    """Folds in which a patient, the first one of fold 0 by default, is in the other fold."""
    folds = pd.read_csv(tiny.folds, dtype={"patient_id": str})
    patient = patient or folds.patient_id[folds.fold == 0].iloc[0]
    folds.loc[folds.patient_id == patient, "fold"] = 1 - folds.fold[folds.patient_id == patient]
    folds.to_csv(path, index=False)
    return patient


@pytest.mark.parametrize("told", [None, [], [10004], "10004"], ids=["nothing", "nobody", "numbers", "text"])
def test_a_network_that_does_not_say_whom_it_was_trained_on_is_refused(tiny, first, tmp_path, told):
    runs = shutil.copytree(first, tmp_path / "first")
    tell_patients(network(runs, 1), told)
    message = refusal(train_second, tiny, [runs], tmp_path / "run")
    assert message.startswith(f"{network(runs, 1)} does not say whom it was trained on")
    assert not (tmp_path / "run").exists()
    models = [FirstLevelModel.load(network(runs, 1))]
    series = pd.DataFrame({"patient_id": ["1"], "series_id": ["2"]})
    assert "does not say" in refusal(describe_series, models, None, None, series, Runtime.create("fp32"))


def test_a_finished_second_level_over_such_networks_can_be_applied(tiny, first, tmp_path):
    train_second(tiny, [first], tmp_path / "run")
    told = submit(tiny.raw, tmp_path / "run", tiny.sample, tmp_path / "before")
    for path in (tmp_path / "run").glob("fold*/first/*/model.safetensors"):
        tell_patients(path, None)
    pd.testing.assert_frame_equal(submit(tiny.raw, tmp_path / "run", tiny.sample, tmp_path / "after"), told)


def test_a_patient_moved_to_a_fold_whose_network_saw_him_is_refused(tiny, first, tmp_path):
    patient = move_patient(tiny, tmp_path / "folds.csv")
    more = f"--folds {tmp_path / 'folds.csv'}"
    message = refusal(train_second, tiny, [first], tmp_path / "run", more)
    assert message.startswith(
        f"{network(first, 1)} was trained on patient {patient}, so it cannot give features"
    )
    assert not (tmp_path / "run").exists()


def test_and_so_it_is_where_features_and_folds_are_there(tiny, first, tmp_path):
    train_second(tiny, [first], tmp_path / "run")
    patient = move_patient(tiny, tmp_path / "folds.csv")
    for resume in ("auto", "never"):
        more = f"--folds {tmp_path / 'folds.csv'} --resume {resume}"
        message = refusal(train_second, tiny, [first], tmp_path / "run", more)
        assert f"was trained on patient {patient}" in message
    assert (tmp_path / "run" / "fold1" / "oof_series.csv").is_file()


def test_a_single_series_moved_to_a_fold_whose_network_saw_its_patient_is_refused(read_inputs, tmp_path):
    own, other = read_inputs.sources[0], read_inputs.sources[1]
    moved = own.series.iloc[[0]].assign(fold=1)
    series = pd.concat([other.series, moved], ignore_index=True)
    sources = [replace(own, series=own.series.iloc[1:]), replace(other, series=series)]
    message = refusal(collect, read_inputs, tmp_path / "run", sources)
    assert f"was trained on patient {moved.patient_id.iloc[0]}" in message
    assert not (tmp_path / "run" / "features" / "fold1").exists()


def test_a_patient_with_series_in_two_folds_is_refused_when_a_fold_is_trained(
    read_inputs, tiny, first, tmp_path
):
    patients = [*read_inputs.labels.patient_id[:4], read_inputs.labels.patient_id.iloc[0]]
    series = pd.DataFrame({"patient_id": patients, "series_id": list("12345"), "fold": [0, 0, 1, 1, 1]})
    described = SliceFeatures(
        series, torch.zeros(5, 4, 3), torch.zeros(5, 4, dtype=torch.bool), torch.full((5, 13), 0.5)
    )
    options = SecondLevelOptions((first,), tiny.prepared, tiny.labels, tiny.folds, tmp_path / "run")
    arguments = (options, described, read_inputs.labels, read_inputs.sources[0])
    message = refusal(second_level._run_fold, *arguments)
    assert message.startswith(f"patient {patients[0]} is trained on (series 5) and held out (series 1)")


def test_networks_in_the_folder_of_another_fold_are_refused(tiny, first, tmp_path):
    runs = shutil.copytree(first, tmp_path / "first")
    shutil.copyfile(network(first, 0), network(runs, 1))
    assert "was trained on patient" in refusal(train_second, tiny, [runs], tmp_path / "run")


def test_kept_features_are_refused_when_the_folds_are_others(tiny, first, tmp_path, monkeypatch):
    """Of a patient whom no network was trained on, so that the networks have no reason to refuse him."""
    runs = shutil.copytree(first, tmp_path / "first")
    patient = move_patient(tiny, tmp_path / "folds.csv")
    for fold in range(2):
        told = read_about(network(runs, fold))["training_patients"]
        tell_patients(network(runs, fold), [other for other in told if other != patient])
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        count_describing(patched, stop_at=1)
        train_second(tiny, [runs], tmp_path / "run")
    more = f"--folds {tmp_path / 'folds.csv'}"
    message = refusal(train_second, tiny, [runs], tmp_path / "run", more)
    kept = tmp_path / "run" / "features" / "fold0"
    assert message.startswith(f"{kept} is of other series than --folds and --data give fold 0, as {patient}/")
    train_second(tiny, [runs], tmp_path / "run", f"{more} --resume never")
    table = pd.read_csv(tmp_path / "run" / "oof_series.csv", dtype={"patient_id": str})
    assert set(table.fold[table.patient_id == patient]) == {1}


def test_features_of_two_folds_exchanged_are_refused(tiny, first, described):
    features = described / "features"
    for source, target in (("fold0", "aside"), ("fold1", "fold0"), ("aside", "fold1")):
        (features / source).rename(features / target)
    message = refusal(train_second, tiny, [first], described)
    assert message.startswith(f"{features / 'fold0'} is of other series")


@pytest.mark.parametrize("order", ["moved", "exchanged"])
def test_a_table_that_was_changed_is_refused(tiny, first, described, order):
    path = described / "features" / "fold1" / "series.csv"
    table = pd.read_csv(path, dtype=str)
    changed = table.assign(fold=0) if order == "moved" else table.iloc[np.r_[1, 0, 2 : len(table)]]
    changed.to_csv(path, index=False)
    assert "is of other series" in refusal(train_second, tiny, [first], described)


def test_features_by_networks_of_another_fold_are_refused_whatever_else_they_say(read_inputs, tmp_path):
    output, own, other = tmp_path / "run", read_inputs.sources[0], read_inputs.sources[1]
    shape = (len(own.series), 4)
    planted = SliceFeatures(
        *(own.series, torch.rand(*shape, 14), torch.zeros(shape, dtype=torch.bool), torch.rand(shape[0], 13))
    )
    store = FeatureStore(output)
    store.keep(replace(own, networks=other.networks), planted)
    assert "was made by networks that were trained on patient" in refusal(collect, read_inputs, output)
    nameless = tuple(replace(network, patients=frozenset()) for network in own.networks)
    store.keep(replace(own, networks=nameless), planted)
    assert "does not say whom its networks were trained on" in refusal(collect, read_inputs, output)


@pytest.mark.parametrize("damage", ["cut", "empty table", "no tensors", "another file", "a row less"])
def test_damaged_features_are_refused_and_made_again(tiny, first, described, damage):
    folder = described / "features" / "fold0"
    path = folder / "features.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "empty table":
        (folder / "series.csv").write_bytes(b"")
    elif damage == "no tensors":
        path.unlink()
    elif damage == "another file":
        shutil.copyfile(network(first, 0), path)
    else:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        save_file({name: part[1:].clone() for name, part in load_file(path).items()}, path, metadata=metadata)
    assert str(folder) in refusal(train_second, tiny, [first], described)
    train_second(tiny, [first], described, "--resume never")
    assert (described / "oof.csv").is_file()


def test_features_that_are_no_numbers_are_not_kept(read_inputs, tmp_path, monkeypatch):
    describe = feature_store.describe_series

    def overflowing(*arguments):
        described = describe(*arguments)
        described.features[1, 2, 3] = torch.inf
        return described

    monkeypatch.setattr(feature_store, "describe_series", overflowing)
    assert "are not finite: give --precision fp32" in refusal(collect, read_inputs, tmp_path / "run")
    assert not [*(tmp_path / "run").glob("features/*")]
