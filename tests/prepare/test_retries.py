"""After a crash or a hang a series is read again, with safer readers or without the file."""

import pytest

from src.ct.series import SeriesError, UnreachableSeries
from src.prepare.retries import run_with_retries
from tests.helpers.dying_readers import be_silent, read_files

NAMES = ("1", "2", "3")


def read(harm, **more):
    return run_with_retries(read_files, NAMES, harm, silence_limit_s=4, **more)


def test_run_with_retries_without_a_failure():
    names, settings = read({})
    assert names == ["1", "2", "3"]
    assert not settings.pydicom_only and not settings.left_out


@pytest.mark.parametrize("how", ["crash", "hang"])
def test_run_with_retries_reads_with_pydicom_after_a_failure(how):
    names, settings = read({"2": f"{how} in dicomsdl"})
    assert names == ["1", "2", "3"]
    assert settings.pydicom_only and not settings.left_out


@pytest.mark.parametrize(
    ("how", "verb"), [("crash", "crashes"), pytest.param("hang", "hangs", marks=pytest.mark.slow)]
)
def test_run_with_retries_leaves_out_files_that_stop_every_decoder(how, verb):
    names, settings = read({"1": "crash in both", "3": f"{how} in both"})
    assert names == ["2"]
    reasons = {item.source: item.reason for item in settings.left_out}
    assert reasons == {"1": "every decoder crashes on it", "3": f"every decoder {verb} on it"}


@pytest.mark.slow
def test_run_with_retries_gives_up_after_many_such_files():
    many = tuple(str(number) for number in range(20))
    with pytest.raises(SeriesError, match="every decoder crashes on it") as caught:
        run_with_retries(read_files, many, dict.fromkeys(many, "crash in both"))
    assert not isinstance(caught.value, UnreachableSeries)


def test_run_with_retries_takes_silence_for_an_unreachable_disk():
    with pytest.raises(UnreachableSeries, match="every decoder hangs on it"):
        run_with_retries(be_silent, silence_limit_s=0.5)


def test_run_with_retries_after_two_kills_names_memory():
    with pytest.raises(SeriesError, match="memory"):
        read({"2": "memory in both"})
