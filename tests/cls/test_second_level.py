"""The second level: what it is told, where it begins, that it learns, and the leaks that it refuses."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

import infer
import prepare_data
import train_cls
from src.cls import second_level
from src.cls.second_level import SecondLevelOptions, _train
from src.cls.second_model import (
    SecondLevel,
    SecondSpec,
    load_second_level,
    predict_described,
    save_second_level,
)
from src.cls.slice_features import FirstLevelModel, SliceFeatures, describe_series
from src.core.errors import UserError
from src.core.runtime import Runtime
from src.core.targets import COLUMNS
from src.data.prepared import PreparedDataset
from tests.helpers.cls_labels import draw_labels


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory):
    """A first-level run of both folds."""
    output = tmp_path_factory.mktemp("first") / "run"
    given = f"--data {tiny.prepared} --labels {tiny.labels} --folds {tiny.folds} --output {output}"
    small = "--backbone test_efficientnet --slices 4 --crop 32 --hidden 8 --epochs 1 --tta none h --workers 0"
    train_cls.main(f"{given} {small}".split())
    return output


def described(labels: pd.DataFrame, seed: int = 0) -> SliceFeatures:
    """One slice of each series shows a bowel injury; the first level is blind."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(len(labels), 6, 3)).astype(np.float32)
    injured = labels["bowel_injury"].to_numpy() == 1
    features[injured, rng.integers(0, 6, injured.sum()), 0] += 6
    series = pd.DataFrame({"patient_id": labels.patient_id, "series_id": "1", "fold": 0})
    base = torch.full((len(labels), 13), 1 / 3)
    return SliceFeatures(
        series, torch.from_numpy(features), torch.zeros(len(labels), 6, dtype=torch.bool), base
    )


def test_it_begins_at_the_first_levels_answer():
    labels = draw_labels(5)
    given = described(labels)
    base = torch.rand(5, 13) + 0.1
    for span in ((0, 2), (2, 4), (4, 7), (7, 10), (10, 13)):
        base[:, slice(*span)] /= base[:, slice(*span)].sum(dim=1, keepdim=True)
    model = SecondLevel(SecondSpec(features=3, hidden=8)).eval()
    answer = predict_described(model, SliceFeatures(given.series, given.features, given.padding, base))
    torch.testing.assert_close(answer, base)


@pytest.mark.parametrize("sequence", ["gru", "transformer", "none"])
def test_it_learns_what_single_slices_tell(sequence, tmp_path):
    labels = draw_labels(300).set_index("patient_id", drop=False)
    options = SecondLevelOptions(
        *((), tmp_path, tmp_path, tmp_path, tmp_path),
        sequence=sequence,
        epochs=20,
        batch=16,
        lr=1e-2,
    )
    model = _train(options, SecondSpec(3, sequence, 8, "max", 0.0), described(labels), labels, 0, 0)
    fresh = draw_labels(100, seed=7)
    told = predict_described(model, described(fresh, seed=7))[:, COLUMNS.index("bowel_injury")].numpy()
    injured = fresh.bowel_injury.to_numpy() == 1
    assert roc_auc_score(injured, told) > 0.9
    assert told[injured].mean() > told[~injured].mean() + 0.3


def test_what_is_saved_is_read_again(tmp_path):
    given = described(draw_labels(4))
    spec = SecondSpec(features=3, hidden=8)
    models = [SecondLevel(spec).eval() for _ in range(2)]
    for model in models:
        torch.nn.init.normal_(model.classifier.weight)
        model.scale_to(given.features, given.padding)
    save_second_level(tmp_path / "second.safetensors", models, spec)
    for model, loaded in zip(models, load_second_level(tmp_path / "second.safetensors"), strict=True):
        torch.testing.assert_close(predict_described(loaded, given), predict_described(model, given))


def test_the_same_models_are_saved_in_the_same_bytes(tmp_path):
    """safetensors writes several entries of metadata in an order that changes from one call to the next."""
    spec = SecondSpec(features=3, hidden=8)
    models = [SecondLevel(spec).eval() for _ in range(2)]
    contents = set()
    for number in range(20):
        save_second_level(tmp_path / f"{number}.safetensors", models, spec)
        contents.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(contents) == 1


def test_networks_say_of_series_of_their_fold_what_they_said_out_of_fold(tiny, first):
    prepared = PreparedDataset.open(tiny.prepared)
    oof = pd.read_csv(first / "oof_series.csv", dtype={"patient_id": str, "series_id": str})
    for fold, rows in oof.groupby("fold"):
        models = [FirstLevelModel.load(first / f"fold{fold}" / "model.safetensors")]
        series = rows[["patient_id", "series_id"]]
        features = describe_series(models, prepared, None, series, Runtime.create("fp32"), workers=0)
        assert features.features.shape == (len(rows), 4, 14)
        assert rows[list(COLUMNS)].to_numpy() == pytest.approx(features.base.numpy(), abs=1e-5)


def test_data_of_another_size_is_refused(tiny, first, tmp_path):
    prepared = tmp_path / "small"
    prepare_data.main(f"--input {tiny.raw} --output {prepared} --size 40 --jobs 1".split())
    given = f"--runs {first} --data {prepared} --labels {tiny.labels} --folds {tiny.folds}"
    with pytest.raises(UserError, match=r"at 40 px, the models want .* at 48 px"):
        second_level.main(f"{given} --output {tmp_path / 'out'} --workers 0".split())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--sequence rnn", "--sequence must be"),
        ("--pooling best", "--pooling must be"),
        ("--dropout 2", "--dropout"),
        ("--resume always", "--resume must be one of auto, never"),
        ("--precision fp64", "--precision must be"),
    ],
)
def test_mistakes_are_refused_before_anything_is_read(tmp_path, option, message):
    given = f"--runs a --data b --labels c --folds d --output {tmp_path / 'out'} {option}"
    with pytest.raises(UserError, match=message):
        second_level.main(given.split())


def test_single_networks_with_offsets_and_masks_are_looked_through(tiny, run_arguments, tmp_path):
    options = {"mode": "single", "z_range": "own", "offsets": 2, "epochs": 1, "spacing_mm": 60}
    train_cls.main(run_arguments("first", **options))
    given = f"--runs {tmp_path / 'first'} --data {tiny.prepared} --labels {tiny.labels} --folds {tiny.folds}"
    small = "--hidden 8 --epochs 1 --seeds 1 --lr 1e-9 --workers 0"
    second_level.main(f"{given} --output {tmp_path / 'second'} {small}".split())
    # nothing learnt: what the first level says
    first, second = (pd.read_csv(tmp_path / run / "oof.csv")[list(COLUMNS)] for run in ("first", "second"))
    np.testing.assert_allclose(second, first, atol=1e-4)


def test_a_second_level_is_a_run_that_scores_and_infers(tiny, first, tmp_path, capsys):
    output = tmp_path / "second"
    given = f"--runs {first} --data {tiny.prepared} --labels {tiny.labels} --folds {tiny.folds}"
    small = "--hidden 8 --epochs 2 --seeds 2 --workers 0"
    second_level.main(f"{given} --output {output} {small}".split())
    table = pd.read_csv(output / "oof.csv", dtype={"patient_id": str})
    assert len(table) == 10 and (output / "scores.csv").is_file()
    # it stands alone: the first level's run may go
    moved = tmp_path / "moved"
    shutil.copytree(output, moved)
    submission = tmp_path / "submission.csv"
    infer.main(f"--input {tiny.raw} --models {moved} --sample {tiny.sample} --output {submission}".split())
    both = tmp_path / "both.csv"
    infer.main(f"--input {tiny.raw} --models {moved} {first} --sample {tiny.sample} --output {both}".split())
    second, mean = pd.read_csv(submission), pd.read_csv(both)
    assert len(second) == 3 and not np.allclose(second[list(COLUMNS)], mean[list(COLUMNS)])
