"""Runs of the second level for the tests: the command line, and ways to stop it and to look at it."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from src.cls import feature_store, second_level
from src.cls.model import load_classifier, save_classifier
from src.cls.run_folder import read_about

SMALL = "--hidden 8 --epochs 2 --seeds 2 --workers 0"


class Interrupted(Exception):
    pass


def train_second(tiny: SimpleNamespace, runs: list[Path], output: Path, more: str = "") -> None:
    """Run the program; `more` may name an option again, and wins."""
    given = ["--runs", *map(str, runs), "--data", str(tiny.prepared), "--labels", str(tiny.labels)]
    given += ["--folds", str(tiny.folds), "--output", str(output)]
    second_level.main([*given, *SMALL.split(), *more.split()])


def count_describing(patched: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """Note how many series are described at a time from now on; the call of that number is interrupted."""
    described, describe = [], feature_store.describe_series

    def counting(models, prepared, organs, series, *rest):
        if len(described) == stop_at:
            raise Interrupted
        described.append(len(series))
        return describe(models, prepared, organs, series, *rest)

    patched.setattr(feature_store, "describe_series", counting)
    return described


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def results_of(run: Path) -> dict[str, bytes]:
    """All that a run leaves save its options, where the folder's name stands."""
    return {name: content for name, content in files_of(run).items() if name not in _OPTIONS}


_OPTIONS = ("run.json", "config.yaml")


def tell_patients(network: Path, patients: object) -> None:
    """Write a network anew, with this told of whom it was trained on; nothing where it is None."""
    about = read_about(network)
    about.pop("training_patients")
    if patients is not None:
        about["training_patients"] = patients
    save_classifier(network, *load_classifier(network), **about)
