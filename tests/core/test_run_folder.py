"""Folders are claimed once, continued by what made them, and refused to anything else."""

import json
import multiprocessing

import pytest

from src.core.errors import UserError
from src.core.run_folder import claim_folder, clear_training, find_checkpoint, only_writer, require_same

RECORD = {"options": {"size": 64, "windows": ["soft", "wide"]}, "data": "a"}


def claim(folder, record=RECORD, **changes):
    return claim_folder(folder, "made.json", record, kind="masks", leftovers=(".*.partial",), **changes)


def test_claim_folder_writes_its_record_and_recognises_it(tmp_path):
    (tmp_path / ".x.partial").mkdir()
    assert claim(tmp_path) is False
    assert json.loads((tmp_path / "made.json").read_text()) == RECORD
    (tmp_path / "result").touch()
    assert claim(tmp_path) is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.json", "result"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"options": {"size": 32, "windows": ["soft", "wide"]}, "data": "a"}, "made with --size 64, not 32"),
        ({"options": {"size": 64, "windows": ["soft"]}, "data": "a"}, "--windows soft wide, not soft: "),
        ({"options": RECORD["options"], "data": "b"}, "made with other data: choose another"),
    ],
)
def test_claim_folder_refuses_what_was_made_of_something_else(tmp_path, record, message):
    claim(tmp_path)
    with pytest.raises(UserError, match=message):
        claim(tmp_path, record, named={"data": "other data"}, advice="choose another")
    assert json.loads((tmp_path / "made.json").read_text()) == RECORD


def test_claim_folder_refuses_a_folder_with_other_files_and_a_damaged_record(tmp_path):
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(UserError, match="contains something other than masks"):
        claim(tmp_path)
    (tmp_path / "made.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        claim(tmp_path)


def test_claim_folder_with_overwrite_deletes_what_is_there(tmp_path):
    claim(tmp_path)
    (tmp_path / "result").touch()
    claim(tmp_path, {"options": {}}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["made.json"]


def test_require_same_leaves_free_options_aside(tmp_path):
    require_same(
        tmp_path, RECORD, RECORD | {"options": {"size": 32, "windows": []}}, free=("size", "windows")
    )


def test_find_checkpoint_follows_resume(tmp_path):
    assert find_checkpoint(tmp_path, "auto") is None
    (tmp_path / "last.pt").touch()
    assert find_checkpoint(tmp_path, "auto") == tmp_path / "last.pt"
    assert find_checkpoint(tmp_path, "never") is None
    assert str(find_checkpoint(tmp_path, "elsewhere/last.pt")) == "elsewhere/last.pt"


def test_clear_training_keeps_the_file_that_the_new_run_starts_from(tmp_path):
    for name in ("encoder.safetensors", "encoder_1.safetensors", "last.pt", "metrics.csv", "notes.txt"):
        (tmp_path / name).touch()
    clear_training(tmp_path, ("encoder*.safetensors",), keep=("none", tmp_path / "encoder.safetensors"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.safetensors", "notes.txt"]


def test_only_writer_refuses_a_second_run_until_the_first_ends(tmp_path):
    second = only_writer(tmp_path / "run")
    with (
        only_writer(tmp_path / "run"),
        pytest.raises(UserError, match="another run is writing"),
        second,
    ):
        pass
    with only_writer(tmp_path / "run"):
        pass


def test_only_writer_is_not_held_by_forked_workers(tmp_path):
    """As after a kill of the run alone, whose workers live on for some seconds."""
    fork = multiprocessing.get_context("fork")
    started, done = fork.Event(), fork.Event()
    with only_writer(tmp_path):
        worker = fork.Process(target=_wait, args=(started, done), daemon=True)
        worker.start()
        assert started.wait(60)
    with only_writer(tmp_path):
        assert worker.is_alive()
    done.set()
    worker.join()
    assert worker.exitcode == 0


def _wait(started, done):
    started.set()
    done.wait(60)
