"""What the disk or the machine is to blame for is read again, what the files are to blame for is not."""

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from src.core.errors import UserError
from src.ct.dicom_series import scan_series
from src.ct.series import SeriesError, UnreachableSeries
from src.ct.storage import LocalFile, LocalFolder, LocalTree, UnreachableFile, UnreachableTree, UnreadableFile
from src.infer import inputs, pipeline
from src.infer import raw as raw_images
from src.prepare.grey_stack import load_stack
from tests.helpers.infer_runs import read_report, submit, train_small


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    return train_small(tiny, tmp_path_factory.mktemp("models") / "run")


def fail_to_open(monkeypatch, number):
    def failing(self, *_, **__):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "open", failing)
    monkeypatch.setattr(os, "scandir", failing)


@pytest.mark.parametrize(
    ("number", "passes"),
    [
        (errno.EIO, True),
        (errno.ENOTCONN, True),
        (errno.ENOMEM, True),
        (errno.ENOENT, False),
        (errno.EACCES, False),
    ],
)
def test_a_disk_that_is_away_is_told_from_a_file_that_is_gone(tiny, monkeypatch, number, passes):
    folder = next((tiny.raw / "test_images").glob("*/*"))
    files = LocalFolder(folder).list()
    with monkeypatch.context() as patch:
        fail_to_open(patch, number)
        for work in (files[0].read, lambda: list(files[0].chunks()), LocalFolder(folder).list):
            with pytest.raises(UnreadableFile) as caught:
                work()
            assert isinstance(caught.value, UnreachableFile) == passes
        with pytest.raises(UserError) as caught:
            LocalTree(folder).list_folder("")
        assert isinstance(caught.value, UnreachableTree) == passes
        with pytest.raises(SeriesError, match="no usable file: file cannot be read") as caught:
            scan_series(files)
        assert isinstance(caught.value, UnreachableSeries) == passes
    assert len(scan_series([*files, LocalFile(folder / "gone.dcm")]).z_mm) == len(files)


@dataclass(frozen=True)
class AwayAtFirst:
    """`load_stack`; the files of one series cannot be read before it was asked for them some times."""

    series_id: str
    asked: Path
    times: int

    def __call__(self, source: Any, *rest: Any, **more: Any) -> Any:
        if source.series_id != self.series_id:
            return load_stack(source, *rest, **more)
        with self.asked.open("ab") as file:
            file.write(b".")
        with pytest.MonkeyPatch.context() as patch:
            if self.asked.stat().st_size <= self.times:
                patch.setattr(LocalFile, "read", _unreachable)
            return load_stack(source, *rest, **more)


def _unreachable(*_: Any) -> bytes:
    raise UnreachableFile("file cannot be read: Input/output error")


@pytest.mark.parametrize(("times", "status"), [(2, "ok"), (3, "skipped")])
def test_a_series_whose_disk_is_away_is_read_again(tiny, run, tmp_path, monkeypatch, times, status):
    series_id = sorted((tiny.raw / "test_images").glob("*/*"))[0].name
    monkeypatch.setattr(pipeline, "PAUSE_S", 0.0)
    monkeypatch.setattr(raw_images, "load_stack", AwayAtFirst(series_id, tmp_path / "asked", times))
    submit(tiny.raw, run, tiny.sample, tmp_path)
    report = read_report(tmp_path).set_index("series_id")
    assert (tmp_path / "asked").stat().st_size == 3
    assert report.loc[series_id, "status"] == status
    assert set(report.drop([series_id, *report.index[report.status == "prior"]]).status) == {"ok"}


def test_a_series_without_files_is_not_read_again(tiny, run, tmp_path, monkeypatch):
    raw = shutil.copytree(tiny.raw, tmp_path / "raw")
    series = sorted((raw / "test_images").glob("*/*"))[0]
    for file in series.iterdir():
        file.write_bytes(b"")
    monkeypatch.setattr(pipeline, "PAUSE_S", 0.0)
    monkeypatch.setattr(raw_images, "load_stack", AwayAtFirst(series.name, tmp_path / "asked", 0))
    submit(raw, run, tiny.sample, tmp_path)
    assert (tmp_path / "asked").stat().st_size == 1


@pytest.mark.parametrize(("times", "is_read"), [(2, True), (9, False)])
def test_folders_that_cannot_be_listed_at_first_are_listed_again(
    tiny, run, tmp_path, monkeypatch, capsys, times, is_read
):
    asked = []

    def away_at_first(self, folder):
        asked.append(folder)
        if len(asked) <= times:
            raise UnreachableTree(f"cannot read the folder {folder}: Input/output error")
        return list_folder(self, folder)

    list_folder = LocalTree.list_folder
    monkeypatch.setattr(LocalTree, "list_folder", away_at_first)
    monkeypatch.setattr(inputs, "PAUSES_S", (0.0, 0.0))
    if is_read:
        submit(tiny.raw, run, tiny.sample, tmp_path)
        assert "ok" in set(read_report(tmp_path).status)
    else:
        with pytest.raises(UnreachableTree):
            submit(tiny.raw, run, tiny.sample, tmp_path)
    assert capsys.readouterr().err.count("trying again") == 2
    assert (tmp_path / "submission.csv").exists() == is_read
