"""train_cls.py on a tiny phantom: tables, resume, refusals, and what it says of the encoder."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import train_cls
from src.core.errors import UserError
from src.core.targets import COLUMNS
from src.data.prepared import PreparedDataset
from tests.helpers.encoder_files import write_encoder
from tests.helpers.folders import files_of
from tests.helpers.infer_runs import train_small
from tests.helpers.training_runs import assert_same_training, interrupted_after_saves


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    """A run of both folds, trained once for the tests that only look."""
    return train_small(tiny, tmp_path_factory.mktemp("cls") / "run", "--epochs 2 --workers 1")


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"patient_id": str, "series_id": str})


def test_train_cls_predicts_every_series_and_patient_out_of_fold(tiny, finished):
    series, patients, folds = read(finished / "oof_series.csv"), read(finished / "oof.csv"), read(tiny.folds)
    prepared = PreparedDataset.open(tiny.prepared).series
    assert list(series) == ["patient_id", "series_id", "fold", *COLUMNS]
    assert set(zip(series.patient_id, series.series_id, strict=True)) == set(
        zip(prepared.patient_id, prepared.series_id, strict=True)
    )
    assert len(series) == len(prepared)
    merged = patients.merge(folds, on="patient_id", suffixes=("", "_asked"), validate="1:1")
    assert len(merged) == len(folds) and (merged.fold == merged.fold_asked).all()


def test_train_cls_leaves_models_metrics_scores_and_options(finished):
    for name in (
        "fold0/model.safetensors",
        "fold1/model.safetensors",
        "fold0/last.pt",
        "config.yaml",
        "run.json",
    ):
        assert (finished / name).is_file(), name
    metrics = pd.read_csv(finished / "fold0" / "metrics.csv")
    assert list(metrics.step) == [1, 2] and np.isfinite(metrics.loss).all()
    scores = pd.read_csv(finished / "scores.csv")
    assert list(scores.fold) == ["fold 0", "fold 1", "all"] and np.isfinite(scores.score).all()


def test_train_cls_adds_one_fold_after_another(run_arguments, tmp_path, finished):
    train_cls.main(run_arguments(fold="1"))
    assert set(read(tmp_path / "run" / "oof.csv").fold) == {1}
    train_cls.main(run_arguments(fold="0"))
    pd.testing.assert_frame_equal(
        read(tmp_path / "run" / "oof.csv"), read(finished / "oof.csv"), check_exact=False, rtol=1e-4
    )


def test_train_cls_continues_to_the_same_result(run_arguments, tmp_path, capsys):
    train_cls.main(run_arguments("whole", fold="0", epochs=3))
    with interrupted_after_saves():
        train_cls.main(run_arguments("broken", fold="0", epochs=3))
    assert not (tmp_path / "broken" / "fold0" / "oof_series.csv").exists()
    train_cls.main(run_arguments("broken", fold="0", epochs=3))
    assert "continues after epoch 1" in capsys.readouterr().out
    assert_same_training(tmp_path / "broken" / "fold0", tmp_path / "whole" / "fold0")
    whole, broken = (read(tmp_path / name / "oof_series.csv") for name in ("whole", "broken"))
    pd.testing.assert_frame_equal(whole, broken, check_exact=True)


def test_train_cls_warns_of_an_encoder_that_saw_held_out_patients(tiny, run_arguments, tmp_path, capsys):
    prepared = PreparedDataset.open(tiny.prepared)
    patients = tuple(prepared.series.patient_id.unique())
    path = tmp_path / "encoder.safetensors"
    write_encoder(path, windows=prepared.windows, patients=patients)
    train_cls.main(run_arguments(encoder=path, fold="0", epochs=1))
    printed = capsys.readouterr()
    assert "tensors matched, 0 missing, 0 unused" in printed.out
    assert "pre-trained on 5 of the 5 held-out patients" in printed.err


def write(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"data": "nowhere"}, "no folder nowhere"),
        ({"crop": "64"}, "larger than the 48 px slices"),
        ({"fold": "7"}, "--fold 7"),
        ({"encoder": "nothing.safetensors"}, "there is no file nothing.safetensors"),
        ({"backbone": "resnet9000"}, "no backbone"),
    ],
)
def test_train_cls_refuses_in_one_line(run_arguments, changes, part):
    with pytest.raises(UserError, match=part) as caught:
        train_cls.main(run_arguments(**changes))
    assert "\n" not in str(caught.value)


def test_train_cls_refuses_a_run_of_other_options_or_data(tiny, run_arguments, tmp_path):
    train_cls.main(run_arguments(fold="0", epochs=1))
    with pytest.raises(UserError, match="made with --hidden 8, not 4"):
        train_cls.main(run_arguments(fold="1", epochs=1, hidden=4))
    folds = pd.read_csv(tiny.folds)
    swapped = write(folds.assign(fold=1 - folds.fold), tmp_path / "swapped.csv")
    with pytest.raises(UserError, match="made with other data"):
        train_cls.main(run_arguments(fold="1", epochs=1, folds=swapped))
    copied = write(folds, tmp_path / "copied.csv")  # the same folds elsewhere are the same run
    train_cls.main(run_arguments(fold="1", epochs=1, folds=copied))


def test_train_cls_leaves_the_folder_free_after_a_refusal(run_arguments):
    with pytest.raises(UserError):
        train_cls.main(run_arguments(fold="0", epochs=1, backbone="resnet9000"))
    with pytest.raises(UserError, match=r"fold0, step \d+: loss or gradient is not finite .* for series"):
        train_cls.main(run_arguments(fold="0", lr="1e30", epochs=1, batch=1))
    train_cls.main(run_arguments(fold="0", epochs=1))


def test_train_cls_resume_never_starts_from_scratch(run_arguments, tmp_path, capsys):
    train_cls.main(run_arguments(fold="0", epochs=1))
    train_cls.main(run_arguments(fold="0", epochs=1))
    assert "fold0 is finished" in capsys.readouterr().out
    train_cls.main(run_arguments(fold="0", epochs=1, hidden=4, resume="never"))
    assert "epoch   1/1" in capsys.readouterr().out


def test_train_cls_refused_start_deletes_nothing(run_arguments, tmp_path):
    train_cls.main(run_arguments(epochs=1))
    before = files_of(tmp_path / "run")
    with pytest.raises(UserError, match="made with --hidden 8, not 4"):  # fold 1 is of the other options
        train_cls.main(run_arguments(fold="0", epochs=1, hidden=4, resume="never"))
    assert files_of(tmp_path / "run") == before


def test_train_cls_predicts_a_patient_without_series(tiny, run_arguments, tmp_path, capsys):
    prepared = shutil.copytree(tiny.prepared, tmp_path / "prepared")
    table = pd.read_csv(prepared / "series.csv", dtype={"patient_id": str})
    table.loc[table.patient_id == table.patient_id.iloc[0], "status"] = "skipped"
    write(table, prepared / "series.csv")
    train_cls.main(run_arguments(data=prepared, epochs=1))
    assert "1 labelled patients have no prepared series" in capsys.readouterr().err
    assert len(read(tmp_path / "run" / "oof.csv")) == 10


def test_train_cls_refuses_a_damaged_slice_in_one_line(tiny, run_arguments, tmp_path):
    prepared = tmp_path / "prepared"
    shutil.copytree(tiny.prepared, prepared)
    for path in prepared.glob("images/*/*/*.png"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="is damaged") as caught:
        train_cls.main(run_arguments(data=prepared, fold="0", workers=1))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
