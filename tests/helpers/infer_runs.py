"""Runs of infer.py for the tests: one tiny model, and the tables that infer.py writes."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd

import infer
import train_cls
from src.core.targets import COLUMNS
from src.infer.stack_sources import LoadedSeries, StackSource

SMALL = "--backbone test_efficientnet --slices 4 --crop 32 --hidden 8 --epochs 1 --tta none --workers 0"


def train_small(tiny: SimpleNamespace, output: Path, more: str = "") -> Path:
    """A run of two folds on the tiny phantom."""
    given = f"--data {tiny.prepared} --labels {tiny.labels} --folds {tiny.folds} --output {output}"
    train_cls.main(f"{given} {SMALL} {more}".split())
    return output


def submit(source: Path, run: Path | list[Path], sample: Path, folder: Path, *more: object) -> pd.DataFrame:
    """Run infer.py into a folder; the 13 columns as floats, by patient."""
    runs = [run] if isinstance(run, Path) else run
    given = ["--input", source, "--models", *runs, "--sample", sample, "--output", folder / "submission.csv"]
    infer.main([str(part) for part in (*given, *more)])
    return read_submission(folder)


def read_submission(folder: Path) -> pd.DataFrame:
    """The 13 columns as floats, by patient."""
    return read_text(folder / "submission.csv").set_index("patient_id")[list(COLUMNS)].astype(float)


def read_report(folder: Path) -> pd.DataFrame:
    """The table of all series."""
    return read_text(folder / "report.csv")


def read_text(path: Path) -> pd.DataFrame:
    """A table with all ids, and empty fields, as text."""
    return pd.read_csv(path, dtype={"patient_id": str, "series_id": str}, keep_default_na=False)


def read_series(source: StackSource, key: tuple[str, str]) -> LoadedSeries:
    """A series as the pipeline reads it."""
    return LoadedSeries(key, *source.make_stacks(source.decode(*key)))
