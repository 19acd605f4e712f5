"""A series survives the files that kill or stop its decoders, one attempt at a time."""

import pytest

from src.ct.series import SeriesError, UnreachableSeries
from src.prepare.retries import run_with_retries
from tests.helpers.dying_readers import be_silent, read_files

NAMES = ("1", "2", "3")


def read(harm, **more):
    return run_with_retries(read_files, NAMES, harm, silence_limit_s=8, **more)


def test_nothing_changes_where_nothing_happens():
    names, settings = read({})
    assert names == ["1", "2", "3"]
    assert not settings.pydicom_only and not settings.left_out


@pytest.mark.parametrize("how", ["crash", "hang"])
def test_after_a_failure_of_dicomsdl_pydicom_reads_all(how):
    names, settings = read({"2": f"{how} in dicomsdl"})
    assert names == ["1", "2", "3"]
    assert settings.pydicom_only and not settings.left_out


def test_a_file_that_no_decoder_survives_is_left_out_with_its_reason():
    names, settings = read({"1": "hang in both", "3": "crash in both"})
    assert names == ["2"]
    reasons = {item.source: item.reason for item in settings.left_out}
    assert reasons == {"1": "every decoder hangs on it", "3": "every decoder crashes on it"}


def test_a_series_of_such_files_is_given_up():
    many = tuple(str(number) for number in range(20))
    with pytest.raises(SeriesError, match="every decoder crashes on it") as caught:
        run_with_retries(read_files, many, dict.fromkeys(many, "crash in both"))
    assert not isinstance(caught.value, UnreachableSeries)


def test_silence_may_be_the_disks_fault():
    with pytest.raises(UnreachableSeries, match="every decoder hangs on it"):
        run_with_retries(be_silent, silence_limit_s=0.5)


def test_memory_is_no_fault_of_a_file():
    with pytest.raises(SeriesError, match="memory"):
        read({"2": "memory in both"})
