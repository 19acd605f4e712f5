"""Doubtful series are trained on only if the option asks for it, and a run says how many there are."""

from pathlib import Path

import pandas as pd
import pytest

from src.core.errors import UserError
from src.data.doubtful import is_trained_on, say_doubtful, warn_of_many


def table(doubtful: int, others: int = 0) -> pd.DataFrame:
    return pd.DataFrame({"status": ["doubtful"] * doubtful + ["ok"] * others})


def test_is_trained_on_leaves_doubtful_series_out_unless_keep():
    assert is_trained_on(table(2, 1), "skip", Path("set")).tolist() == [False, False, True]
    assert is_trained_on(table(2, 1), "keep", Path("set")).all()
    assert is_trained_on(table(3), "keep", Path("set")).all()


def test_is_trained_on_names_the_option_where_no_series_is_left():
    with pytest.raises(UserError, match=r"all 3 series of set are doubtful.*--doubtful keep") as caught:
        is_trained_on(table(3), "skip", Path("set"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("option", "words"), [("skip", "left out of training"), ("keep", "trained on")])
def test_say_doubtful_is_one_line_if_there_are_any(capsys, option, words):
    say_doubtful(0, option)
    assert capsys.readouterr().out == ""
    say_doubtful(3, option)
    line = capsys.readouterr().out
    assert f"doubtful series: 3, {words}" in line and line.count("\n") == 1


@pytest.mark.parametrize(("doubtful", "warns"), [(0, False), (2, False), (3, True)])
def test_warn_of_many_warns_above_one_percent(capsys, doubtful, warns):
    warn_of_many(table(doubtful, 200 - doubtful), Path("set"))
    message = capsys.readouterr().err
    assert bool(message) == warns
    if warns:
        assert "3 of 200 series are doubtful" in message and message.count("\n") == 1
        assert "--doubtful keep" in message and "set/series.csv" in message
