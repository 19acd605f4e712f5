"""Files and folders are whole or absent."""

import numpy as np
import pandas as pd
import pytest

from src.core.files import atomic_path, read_exact, whole_folder, write_table


def test_atomic_path_keeps_the_old_file_on_an_error(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["table.csv"]


def test_read_exact_returns_floats_to_the_last_digit(tmp_path):
    """A parser that is off in the last digit, as pandas' was, errs in half of them."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"value": rng.random(1000) * 10.0 ** rng.integers(-3, 4, 1000)})
    write_table(table, tmp_path / "table.csv")
    pd.testing.assert_frame_equal(read_exact(tmp_path / "table.csv"), table, check_exact=True)


def test_whole_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "a" / "b") as partial:
        (partial / "x").write_text("half")
        raise RuntimeError
    assert list((tmp_path / "a").iterdir()) == []
    with whole_folder(tmp_path / "a" / "b") as partial:
        (partial / "x").write_text("whole")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "x").read_text() == "whole"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
