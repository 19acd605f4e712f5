"""The second level: its training, its run folder, and the leaks that it refuses."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

import train_cls
from src.cls import second_level
from src.cls.second_features import SliceFeatures, ViewFeatures
from src.cls.second_level import SecondInputs, SecondLevelOptions, _train
from src.cls.second_model import SecondSpec, predict_features
from src.core.errors import UserError
from src.core.targets import COLUMNS
from src.data.labels import read_probabilities
from tests.helpers.doubtful_sets import copy_doubtful, series_of
from tests.helpers.infer_runs import submit
from tests.helpers.score_frames import draw_labels
from tests.helpers.second_level_runs import record_patients, refusal, train_second


def network(run, fold: int):
    return run / f"fold{fold}" / "model.safetensors"


def move_patient(tiny, path) -> str:
    """Folds in which the first patient of fold 0 is in fold 1."""
    folds = pd.read_csv(tiny.folds, dtype={"patient_id": str})
    patient = folds.patient_id[folds.fold == 0].iloc[0]
    folds.loc[folds.patient_id == patient, "fold"] = 1
    folds.to_csv(path, index=False)
    return patient


def draw_features(labels: pd.DataFrame, seed: int = 0) -> SliceFeatures:
    """One slice of each series shows a bowel injury; the first level's probabilities are all equal."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(len(labels), 6, 3)).astype(np.float32)
    injured = labels["bowel_injury"].to_numpy() == 1
    features[injured, rng.integers(0, 6, injured.sum()), 0] += 6
    series = pd.DataFrame({"patient_id": labels.patient_id, "series_id": "1", "fold": 0})
    padding, base = torch.zeros(len(labels), 6, dtype=torch.bool), torch.full((len(labels), 13), 1 / 3)
    return SliceFeatures(series, (ViewFeatures(torch.from_numpy(features), padding),), base)


@pytest.mark.parametrize("sequence", ["gru", "transformer", "none"])
def test_train_learns_from_single_slices(sequence, tmp_path):
    labels = draw_labels(300, injury_rate=0.5).set_index("patient_id", drop=False)
    given = {"sequence": sequence, "epochs": 20, "batch": 16, "lr": 1e-2}
    options = SecondLevelOptions((), tmp_path, tmp_path, tmp_path, tmp_path, **given)
    model = _train(options, SecondSpec((3,), sequence, 8, "max", 0.0), draw_features(labels), labels, 0, 0)
    fresh = draw_labels(100, seed=7, injury_rate=0.5)
    predicted = predict_features(model, draw_features(fresh, seed=7))[
        :, COLUMNS.index("bowel_injury")
    ].numpy()
    injured = fresh.bowel_injury.to_numpy() == 1
    assert roc_auc_score(injured, predicted) > 0.9
    assert predicted[injured].mean() > predicted[~injured].mean() + 0.3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--epochs 0", "--epochs must be at least 1"),
        ("--resume always", "--resume: expected auto or never"),
    ],
)
def test_second_level_checks_options_before_reading(tmp_path, option, message):
    given = f"--runs a --data b --labels c --folds d --output {tmp_path / 'out'} {option}"
    with pytest.raises(UserError, match=message):
        second_level.main(given.split())


def test_train_second_level_starts_at_the_first_level(tiny, run_arguments, tmp_path):
    options = {"mode": "single", "z_range": "own", "offsets": 2, "epochs": 1, "spacing_mm": 60}
    train_cls.main(run_arguments("first", **options))
    train_second(tiny, [tmp_path / "first"], tmp_path / "second", "--epochs 1 --seeds 1 --lr 1e-9")
    first, second = (pd.read_csv(tmp_path / run / "oof.csv")[list(COLUMNS)] for run in ("first", "second"))
    np.testing.assert_allclose(second, first, atol=1e-4)


def test_train_second_level_leaves_all_that_infer_needs(tiny, first, tmp_path):
    train_second(tiny, [first], tmp_path / "second")
    table = pd.read_csv(tmp_path / "second" / "oof.csv", dtype={"patient_id": str})
    assert len(table) == 10 and (tmp_path / "second" / "scores.csv").is_file()
    moved = shutil.copytree(tmp_path / "second", tmp_path / "moved")
    alone = submit(tiny.raw, moved, tiny.sample, tmp_path / "alone")
    both = submit(tiny.raw, [moved, first], tiny.sample, tmp_path / "both")
    assert len(alone) == 3 and not np.allclose(alone, both)
    for path in moved.glob("fold*/first/*/model.safetensors"):  # needed in training only
        record_patients(path, None)
    pd.testing.assert_frame_equal(submit(tiny.raw, moved, tiny.sample, tmp_path / "after"), alone)


def test_train_second_level_refuses_a_network_trained_on_its_fold(tiny, first, tmp_path):
    patient = move_patient(tiny, tmp_path / "folds.csv")
    more = f"--folds {tmp_path / 'folds.csv'}"
    message = refusal(tiny, [first], tmp_path / "run", more)
    assert message.startswith(
        f"{network(first, 1)} was trained on patient {patient}, so it cannot give features"
    )
    assert not (tmp_path / "run").exists()
    train_second(tiny, [first], tmp_path / "run")
    for resume in ("auto", "never"):  # also where features and folds exist
        assert f"patient {patient}" in refusal(tiny, [first], tmp_path / "run", f"{more} --resume {resume}")
    assert (tmp_path / "run" / "fold1" / "oof_series.csv").is_file()


def test_train_second_level_predicts_doubtful_series_without_training_on_them(
    tiny, first, tmp_path, monkeypatch, capsys
):
    patient, series = min(series_of(tiny.prepared).items())
    data = copy_doubtful(tiny.prepared, tmp_path / "prepared", series)
    trained = []
    train = second_level._train

    def recording(options, spec, training, *rest):
        trained.append(set(training.series.patient_id))
        return train(options, spec, training, *rest)

    monkeypatch.setattr(second_level, "_train", recording)
    train_second(tiny, [first], tmp_path / "run", f"--data {data} --seeds 1")
    assert f"doubtful series: {len(series)}, left out of training" in capsys.readouterr().out
    assert patient not in set.union(*trained)
    assert set(read_probabilities(tmp_path / "run" / "oof_series.csv").series_id) >= set(series)
    assert len(read_probabilities(tmp_path / "run" / "oof.csv")) == 10
    more = f"--data {data} --seeds 1 --doubtful keep"
    assert "masks, --doubtful or --precision" in refusal(tiny, [first], tmp_path / "run", more)
    trained.clear()
    train_second(tiny, [first], tmp_path / "run", f"{more} --resume never")
    assert "features of" in capsys.readouterr().out  # they are those of before
    assert patient in set.union(*trained)


def test_second_inputs_names_the_option_where_other_folds_are_doubtful(tiny, first, tmp_path):
    folds = pd.read_csv(tiny.folds, dtype={"patient_id": str}).set_index("patient_id").fold
    by_patient = series_of(tiny.prepared)
    others = [series for patient in folds.index[folds == 1] for series in by_patient[patient]]
    data = copy_doubtful(tiny.prepared, tmp_path / "prepared", others)
    message = refusal(tiny, [first], tmp_path / "run", f"--data {data}")
    assert "all series of the other folds are doubtful" in message and "--doubtful keep" in message


def test_run_fold_refuses_a_patient_with_series_in_two_folds(tiny, first, tmp_path):
    options = SecondLevelOptions((first,), tiny.prepared, tiny.labels, tiny.folds, tmp_path / "run")
    inputs = SecondInputs.read(options, "fp32")
    patients = [*inputs.labels.patient_id[:4], inputs.labels.patient_id.iloc[0]]
    series = pd.DataFrame({"patient_id": patients, "series_id": list("12345"), "fold": [0, 0, 1, 1, 1]})
    padding, base = torch.zeros(5, 4, dtype=torch.bool), torch.full((5, 13), 0.5)
    features = SliceFeatures(series, (ViewFeatures(torch.zeros(5, 4, 3), padding),), base)
    with pytest.raises(UserError, match=rf"patient {patients[0]} is trained on \(series 5\) and held out"):
        second_level._run_fold(options, features, inputs, inputs.sources[0])
