"""Readers that end their process or never end, as C decoders do on damaged files. A child can import them."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from src.core.isolation import Report
from src.ct.series import ReadSettings, SeriesSource
from src.ct.storage import LocalFile, UnreachableFile
from src.prepare.grey_stack import load_stack


@dataclass(frozen=True)
class DieOn:
    """`load_stack`, whose process ends on one series."""

    series_id: str

    def __call__(self, source: SeriesSource, *rest: Any, **more: Any) -> Any:
        if source.series_id == self.series_id:
            os._exit(11)
        return load_stack(source, *rest, **more)


@dataclass(frozen=True)
class Misbehave:
    """`load_stack`, whose process ends on some series and hangs on others."""

    crash: frozenset[str]
    hang: frozenset[str] = frozenset()

    def __call__(self, source: SeriesSource, *rest: Any, **more: Any) -> Any:
        if source.series_id in self.crash:
            os.abort()
        if source.series_id in self.hang:
            time.sleep(600)
        return load_stack(source, *rest, **more)


@dataclass(frozen=True)
class AwayAtFirst:
    """`load_stack`; the files of one series cannot be read the first `times` that it is called for them.

    `calls` is a file with a byte per call.
    """

    series_id: str
    calls: Path
    times: int

    def __call__(self, source: SeriesSource, *rest: Any, **more: Any) -> Any:
        if source.series_id != self.series_id:
            return load_stack(source, *rest, **more)
        with self.calls.open("ab") as file:
            file.write(b".")
        with pytest.MonkeyPatch.context() as patch:
            if self.calls.stat().st_size <= self.times:
                patch.setattr(LocalFile, "read", _unreachable)
            return load_stack(source, *rest, **more)


def _unreachable(*_: Any) -> bytes:
    raise UnreachableFile("file cannot be read: Input/output error")


def read_files(
    names: tuple[str, ...], harm: dict[str, str], settings: ReadSettings, report: Report
) -> tuple[list[str], ReadSettings]:
    """Names read, and the settings. `harm` of a file: crash, hang or memory, in dicomsdl alone or "both"."""
    skip = {item.source for item in settings.left_out}
    for name in names:
        if name in skip:
            continue
        report(name)
        how, _, where = harm.get(name, "").partition(" in ")
        if how and not (settings.pydicom_only and where == "dicomsdl"):
            {"crash": os.abort, "hang": lambda: time.sleep(60), "memory": _die_of_memory}[how]()
    return [name for name in names if name not in skip], settings


def be_silent(settings: ReadSettings, report: Report) -> None:
    """Without a word about files, as where listing a folder does not end."""
    time.sleep(60)


def _die_of_memory() -> None:
    """As the system ends a process that has taken too much."""
    os.kill(os.getpid(), signal.SIGKILL)
