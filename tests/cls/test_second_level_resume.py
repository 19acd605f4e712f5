"""A second level that was interrupted, or exists already: what is kept, made again and refused."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from src.cls import second_level
from src.core.run_folder import only_writer
from src.core.runtime import Runtime
from tests.helpers.folders import files_of
from tests.helpers.infer_runs import train_small
from tests.helpers.second_level_runs import (
    count_computing,
    refusal,
    results_of,
    train_second,
)
from tests.helpers.training_runs import Interrupted


@pytest.fixture(scope="module")
def whole(tiny, first, tmp_path_factory):
    """A second level that was not interrupted, for tests that change nothing."""
    output = tmp_path_factory.mktemp("second") / "whole"
    train_second(tiny, [first], output)
    return output


@pytest.fixture
def copy(whole, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.fixture
def partial(tiny, first, tmp_path, monkeypatch):
    """A run that was interrupted in the second of its two folds, while features were computed."""
    output = tmp_path / "partial"
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        count_computing(patched, stop_at=1)
        train_second(tiny, [first], output)
    return output


def stop(*_):
    raise Interrupted


def test_train_second_level_keeps_finished_features(tiny, first, whole, partial, monkeypatch, capsys):
    path = partial / "features" / "fold0.safetensors"
    assert list(results_of(partial)) == ["features/fold0.safetensors"] and not [*partial.glob("**/.*")]
    calls = count_computing(monkeypatch)
    train_second(tiny, [first], partial)
    assert len(calls) == 1 and f"series are read from {path}" in capsys.readouterr().out
    assert results_of(partial) == results_of(whole)


def test_train_second_level_keeps_finished_folds(tiny, first, whole, tmp_path, monkeypatch, capsys):
    output, write, written = tmp_path / "run", second_level.write_table, []

    def stop_in_fold_1(*given):
        written.append(given)
        return stop() if len(written) == 2 else write(*given)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(second_level, "write_table", stop_in_fold_1)
        train_second(tiny, [first], output)
    assert (output / "fold0" / "oof_series.csv").is_file() and not [*output.glob("*fold1*")]
    finished, calls = (output / "fold0").stat().st_ino, count_computing(monkeypatch)
    train_second(tiny, [first], output)
    assert "fold 0 is finished" in capsys.readouterr().out
    assert not calls and (output / "fold0").stat().st_ino == finished
    assert results_of(output) == results_of(whole)


def test_train_second_level_deletes_files_of_a_killed_run(tiny, first, whole, partial):
    (partial / ".fold0.00aa.partial" / "first").mkdir(parents=True)
    (partial / "features" / ".fold1-00aa.safetensors").write_bytes(b"half")
    train_second(tiny, [first], partial)
    assert results_of(partial) == results_of(whole)


def test_train_second_level_leaves_a_finished_run(tiny, first, whole, copy, monkeypatch, capsys):
    calls = count_computing(monkeypatch)
    train_second(tiny, [first], copy)
    assert not calls and "fold 1 is finished" in capsys.readouterr().out
    assert results_of(copy) == results_of(whole)


def test_train_second_level_resume_never_keeps_features(tiny, first, whole, copy, monkeypatch):
    before = files_of(copy)
    message = refusal(tiny, [first], copy, "--hidden 4 --lr 0.1")
    assert "was made with --hidden 8, not 4: start from scratch with --resume never" in message
    assert files_of(copy) == before
    calls = count_computing(monkeypatch)
    train_second(tiny, [first], copy, "--hidden 4 --lr 0.1 --resume never")
    first_run, anew = (pd.read_csv(run / "oof.csv").iloc[:, 2:] for run in (whole, copy))
    assert not calls and not np.allclose(first_run, anew)
    train_second(tiny, [first], copy, "--hidden 4 --lr 0.1")
    assert json.loads((copy / "second_level.json").read_text())["options"]["hidden"] == 4


def test_train_second_level_resume_never_leaves_no_older_result(tiny, first, whole, copy, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(second_level, "_run_fold", stop)
        train_second(tiny, [first], copy, "--seed 7 --resume never")
    assert set(results_of(copy)) == {name for name in results_of(whole) if name.startswith("features/")}
    train_second(tiny, [first], copy, "--seed 7")
    assert "was made with --seed 7, not 42" in refusal(tiny, [first], copy)


def test_train_second_level_compares_inputs_by_content(tiny, first, copy, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    shutil.copytree(first, moved / "first")
    shutil.copytree(tiny.prepared, moved / "prepared")
    shutil.copyfile(tiny.labels, moved / "train.csv")
    calls = count_computing(monkeypatch)
    elsewhere = f"--data {moved / 'prepared'} --labels {moved / 'train.csv'} --precision fp32"
    (copy / "fold1" / "oof_series.csv").unlink()
    train_second(tiny, [moved / "first"], copy, elsewhere)
    assert not calls


def change(what: str, tiny, first, folder, monkeypatch) -> tuple[list, str]:
    """The runs and further options of a command in which one input is another."""
    if what == "--runs":
        return [train_small(tiny, folder / "other", "--seed 5")], ""
    if what == "--precision":  # accelerate admits one per process
        monkeypatch.setattr(Runtime, "precision", property(lambda _: "bf16"))
        return [first], "--precision auto"
    if what == "--labels":
        labels = pd.read_csv(tiny.labels)
        injured = labels["bowel_injury"] == 1
        labels.loc[injured, ["bowel_healthy", "bowel_injury"]] = [1, 0]
        healthy = [name for name in labels if name.endswith("_healthy")]
        labels["any_injury"] = 1 - labels[healthy].min(axis=1)
        assert injured.any()
        labels.to_csv(folder / "labels.csv", index=False)
        return [first], f"--labels {folder / 'labels.csv'}"
    prepared = shutil.copytree(tiny.prepared, folder / "prepared")
    series = pd.read_csv(prepared / "series.csv", dtype=str)
    series["spacing_z_mm"] = "17.5"
    series.to_csv(prepared / "series.csv", index=False)
    return [first], f"--data {prepared}"


@pytest.mark.parametrize(
    ("what", "computed"), [("--runs", 2), ("--data", 2), ("--labels", 0), ("--precision", 2)]
)
def test_train_second_level_refuses_other_inputs(tiny, first, copy, tmp_path, monkeypatch, what, computed):
    before, calls = files_of(copy), count_computing(monkeypatch)
    runs, more = change(what, tiny, first, tmp_path, monkeypatch)
    message = refusal(tiny, runs, copy, more)
    assert message.startswith(f"{copy} was made with other") and what in message
    assert files_of(copy) == before and not calls
    train_second(tiny, runs, copy, f"{more} --resume never")
    assert len(calls) == computed


def test_train_second_level_refuses_other_masks(tiny, tmp_path, monkeypatch):
    first = train_small(tiny, tmp_path / "first", "--z-range organs")
    prepared = shutil.copytree(tiny.prepared, tmp_path / "prepared")
    output, more = tmp_path / "run", f"--data {prepared}"
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        count_computing(patched, stop_at=1)
        train_second(tiny, [first], output, more)
    shutil.rmtree(next((prepared / "masks").glob("*/*")))
    assert "was made with other --runs, --data, masks" in refusal(tiny, [first], output, more)


def test_train_second_level_refuses_an_output_in_use(tiny, first, partial):
    before = files_of(partial)
    with only_writer(partial):
        assert "another run is writing" in refusal(tiny, [first], partial)
    assert files_of(partial) == before


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_train_second_level_refuses_a_run_of_the_first_level(tiny, first, tmp_path, resume):
    run = shutil.copytree(first, tmp_path / "run")
    assert "contains something other than a second level" in refusal(tiny, [first], run, f"--resume {resume}")
    assert files_of(run) == files_of(first)
