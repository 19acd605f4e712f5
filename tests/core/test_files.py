"""Files that are whole or absent, and folders that one run at a time writes to."""

import multiprocessing

import numpy as np
import pandas as pd
import pytest

from src.core.errors import UserError
from src.core.files import atomic_path, read_exact, write_table
from src.core.run_folder import only_writer


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    refused = pytest.raises(UserError, match="another run is writing")
    with only_writer(tmp_path), refused, only_writer(tmp_path):
        pass
    with only_writer(tmp_path):
        pass


def test_a_forked_worker_does_not_hold_its_parents_folder(tmp_path):
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


def test_a_file_that_fails_half_way_leaves_what_was_there(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["table.csv"]


def test_floats_come_back_from_a_table_to_the_last_digit(tmp_path):
    """A parser that is off in the last digit, as pandas' was, errs in half of them."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"value": rng.random(1000) * 10.0 ** rng.integers(-3, 4, 1000)})
    write_table(table, tmp_path / "table.csv")
    pd.testing.assert_frame_equal(read_exact(tmp_path / "table.csv"), table, check_exact=True)
