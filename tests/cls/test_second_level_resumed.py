"""A second level that was interrupted, or is there already: what is kept, made again and refused."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from src.cls import second_level
from src.core.errors import UserError
from src.core.run_folder import only_writer
from src.core.runtime import Runtime
from src.submit.bundle import run_files
from tests.helpers.infer_runs import train_small
from tests.helpers.second_level_runs import Interrupted, count_describing, files_of, results_of, train_second


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory):
    """A first-level run of both folds."""
    return train_small(tiny, tmp_path_factory.mktemp("first") / "run")


@pytest.fixture(scope="module")
def whole(tiny, first, tmp_path_factory):
    """A second level that nothing interrupted, for tests that only look."""
    output = tmp_path_factory.mktemp("second") / "whole"
    train_second(tiny, [first], output)
    return output


@pytest.fixture
def copy(whole, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.fixture
def described(tiny, first, tmp_path, monkeypatch):
    """The folder of a run that was interrupted in the second of its two folds, while describing."""
    output = tmp_path / "described"
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        count_describing(patched, stop_at=1)
        train_second(tiny, [first], output)
    return output


def refusal(*arguments) -> str:
    with pytest.raises(UserError) as caught:
        train_second(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_features_that_are_finished_are_not_described_again(
    tiny, first, whole, described, monkeypatch, capsys
):
    names = ["features/fold0/features.safetensors", "features/fold0/series.csv"]
    assert list(results_of(described)) == names and not [*described.glob("**/.*")]
    calls = count_describing(monkeypatch)
    train_second(tiny, [first], described)
    assert len(calls) == 1
    assert f"series are read from {described / 'features' / 'fold0'}" in capsys.readouterr().out
    assert results_of(described) == results_of(whole)


def test_folds_that_are_finished_are_not_trained_again(tiny, first, whole, tmp_path, monkeypatch, capsys):
    output, train = tmp_path / "run", second_level._train

    def stop_in_fold_1(options, spec, training, labels, fold, number):
        if fold == 1:
            raise Interrupted
        return train(options, spec, training, labels, fold, number)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(second_level, "_train", stop_in_fold_1)
        train_second(tiny, [first], output)
    assert (output / "fold0" / "oof_series.csv").is_file() and not (output / "fold1").exists()
    finished, calls = (output / "fold0").stat().st_ino, count_describing(monkeypatch)
    train_second(tiny, [first], output)
    assert "fold 0 is finished" in capsys.readouterr().out
    assert not calls and (output / "fold0").stat().st_ino == finished
    assert results_of(output) == results_of(whole)


@pytest.mark.parametrize("last", ["save_second_level", "write_table"])
def test_an_unfinished_fold_leaves_nothing_that_could_be_taken_for_one(
    tiny, first, whole, tmp_path, monkeypatch, last
):
    def stop(*_):
        raise Interrupted

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(second_level, last, stop)
        train_second(tiny, [first], tmp_path / "run")
    assert not [*(tmp_path / "run").glob("*fold*")]
    train_second(tiny, [first], tmp_path / "run")
    assert results_of(tmp_path / "run") == results_of(whole)


def test_what_a_killed_run_left_half_written_is_swept_away(tiny, first, whole, described):
    for half in (".fold0.00aa.partial", "features/.fold1.00aa.partial", "fold1"):
        (described / half / "first" / "0").mkdir(parents=True)
        (described / half / "first" / "0" / "model.safetensors").write_bytes(b"half")
    (described / "fold1" / "second.safetensors").write_bytes(b"half")
    train_second(tiny, [first], described)
    assert results_of(described) == results_of(whole)


def test_a_fold_of_an_interrupted_run_is_no_reason_to_refuse(tiny, first, whole, tmp_path):
    (tmp_path / "run" / "fold0" / "first" / "0").mkdir(parents=True)
    (tmp_path / "run" / "fold1").mkdir()
    train_second(tiny, [first], tmp_path / "run")
    assert results_of(tmp_path / "run") == results_of(whole)


def test_a_finished_run_stays_as_it_is(tiny, first, whole, copy, monkeypatch, capsys):
    calls = count_describing(monkeypatch)
    train_second(tiny, [first], copy)
    assert not calls and "fold 1 is finished" in capsys.readouterr().out
    assert results_of(copy) == results_of(whole)


def test_other_options_need_resume_never_which_keeps_the_features(
    tiny, first, whole, copy, monkeypatch, capsys
):
    before = files_of(copy)
    assert "holds a run with other --hidden, --lr: start anew with --resume never" in refusal(
        *(tiny, [first], copy, "--hidden 4 --lr 0.1")
    )
    assert files_of(copy) == before
    calls = count_describing(monkeypatch)
    train_second(tiny, [first], copy, "--hidden 4 --lr 0.1 --resume never")
    assert not calls and "features of" in capsys.readouterr().out
    first_run, anew = (pd.read_csv(run / "oof.csv").iloc[:, 2:] for run in (whole, copy))
    assert not np.allclose(first_run, anew)
    train_second(tiny, [first], copy, "--hidden 4 --lr 0.1")
    assert json.loads((copy / "run.json").read_text())["options"]["hidden"] == 4


def test_a_run_begun_anew_and_interrupted_is_not_mixed_with_the_older_one(
    tiny, first, whole, copy, monkeypatch
):
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(second_level, "_run_fold", lambda *_: (_ for _ in ()).throw(Interrupted))
        train_second(tiny, [first], copy, "--seed 7 --resume never")
    assert set(results_of(copy)) == {name for name in results_of(whole) if name.startswith("features/")}
    train_second(tiny, [first], copy, "--seed 7")
    assert "other --seed" in refusal(tiny, [first], copy)


def test_before_a_fold_is_trained_the_options_are_free(tiny, first, described, monkeypatch):
    calls = count_describing(monkeypatch)
    train_second(tiny, [first], described, "--hidden 4")
    assert len(calls) == 1


def test_inputs_are_known_by_their_content_not_by_their_place(tiny, first, copy, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    shutil.copytree(first, moved / "first")
    shutil.copytree(tiny.prepared, moved / "prepared")
    shutil.copyfile(tiny.labels, moved / "train.csv")
    calls = count_describing(monkeypatch)
    elsewhere = f"--data {moved / 'prepared'} --labels {moved / 'train.csv'} --precision fp32"
    train_second(tiny, [moved / "first"], copy, elsewhere)
    (copy / "fold1" / "oof_series.csv").unlink()
    train_second(tiny, [moved / "first"], copy, elsewhere)
    assert not calls


def change(what: str, tiny, first, folder, monkeypatch) -> tuple[list, str]:
    """The runs and further options of a command in which one input is another."""
    if what == "--runs":
        return [train_small(tiny, folder / "other", "--seed 5")], ""
    if what == "--precision":  # of which accelerate admits one a process
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


@pytest.mark.parametrize("what", ["--runs", "--data", "--labels", "--precision"])
def test_a_changed_input_of_a_finished_run_is_named(tiny, first, copy, tmp_path, monkeypatch, what):
    before = files_of(copy)
    runs, more = change(what, tiny, first, tmp_path, monkeypatch)
    assert refusal(tiny, runs, copy, more).startswith(f"{copy} holds a run with other {what}: ")
    assert files_of(copy) == before


@pytest.mark.parametrize("what", ["--runs", "--data", "--precision"])
def test_features_of_other_inputs_are_refused_and_with_resume_never_made_again(
    tiny, first, described, tmp_path, monkeypatch, capsys, what
):
    runs, more = change(what, tiny, first, tmp_path, monkeypatch)
    calls = count_describing(monkeypatch)
    told = refusal(tiny, runs, described, more)
    assert told.startswith(f"{described / 'features' / 'fold0'} was made with other {what}: start anew with")
    assert not calls
    train_second(tiny, runs, described, f"{more} --resume never")
    assert len(calls) == 2 and "it is made again" in capsys.readouterr().out


def test_masks_are_part_of_what_features_follow_from(tiny, tmp_path, monkeypatch):
    first = train_small(tiny, tmp_path / "first", "--z-range organs")
    prepared = shutil.copytree(tiny.prepared, tmp_path / "prepared")
    output, more = tmp_path / "run", f"--data {prepared}"
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        count_describing(patched, stop_at=1)
        train_second(tiny, [first], output, more)
    lost = next((prepared / "masks").glob("*/*"))
    shutil.rmtree(lost)
    assert "was made with other masks: " in refusal(tiny, [first], output, more)


def test_an_output_in_use_is_refused(tiny, first, described):
    before = files_of(described)
    with only_writer(described):
        assert "another run is writing" in refusal(tiny, [first], described)
    assert files_of(described) == before


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_run_of_the_first_level_is_no_output(tiny, first, tmp_path, resume):
    finished = shutil.copytree(first, tmp_path / "finished")
    begun = shutil.copytree(first, tmp_path / "begun")
    for name in (
        "oof.csv",
        "oof_series.csv",
        "scores.csv",
        "fold0/oof_series.csv",
        "fold0/model.safetensors",
    ):
        (begun / name).unlink()
    shutil.rmtree(begun / "fold1")
    for run in (finished, begun):
        before = files_of(run)
        assert "holds a run of another program" in refusal(tiny, [first], run, f"--resume {resume}")
        assert files_of(run) == before


def test_an_output_that_is_a_file_is_refused(tiny, first, tmp_path):
    (tmp_path / "run").write_text("")
    assert "cannot make the folder" in refusal(tiny, [first], tmp_path / "run")


def test_a_network_that_is_trained_anew_meanwhile_is_noticed(tiny, first, tmp_path, monkeypatch):
    runs = shutil.copytree(first, tmp_path / "first")
    other = train_small(tiny, tmp_path / "other", "--seed 5")
    train = second_level._train

    def train_meanwhile(*arguments):
        shutil.copyfile(other / "fold0" / "model.safetensors", runs / "fold0" / "model.safetensors")
        return train(*arguments)

    monkeypatch.setattr(second_level, "_train", train_meanwhile)
    assert "was written anew while" in refusal(tiny, [runs], tmp_path / "run")
    assert not [*(tmp_path / "run").glob("*fold*")]


def test_features_are_not_bundled(whole):
    files = {path.as_posix() for path in run_files(whole)}
    assert files == {
        f"fold{fold}/{name}"
        for fold in range(2)
        for name in ("second.safetensors", "first/0/model.safetensors")
    }
