"""Runs of the second level for the tests: the command line, interruptions, and comparison of results."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from src.cls import second_level
from src.cls.fold_models import read_about
from src.cls.model import load_classifier, save_classifier
from src.core.errors import UserError
from tests.helpers.folders import files_of
from tests.helpers.training_runs import Interrupted

SMALL = "--hidden 8 --epochs 2 --seeds 2 --workers 0"


def train_second(tiny: SimpleNamespace, runs: list[Path], output: Path, more: str = "") -> None:
    """Run the program; `more` may name an option again, and wins."""
    given = ["--runs", *map(str, runs), "--data", str(tiny.prepared), "--labels", str(tiny.labels)]
    given += ["--folds", str(tiny.folds), "--output", str(output)]
    second_level.main([*given, *SMALL.split(), *more.split()])


def refusal(tiny: SimpleNamespace, runs: list[Path], output: Path, more: str = "") -> str:
    """The one line with which the program refuses to run."""
    with pytest.raises(UserError) as caught:
        train_second(tiny, runs, output, more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def count_computing(patched: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """Record the series of each computation of features from now on; the call of number `stop_at` fails."""
    counts, compute = [], second_level.compute_features

    def counting(networks, prepared, organs, series, *rest):
        if len(counts) == stop_at:
            raise Interrupted
        counts.append(len(series))
        return compute(networks, prepared, organs, series, *rest)

    patched.setattr(second_level, "compute_features", counting)
    return counts


def results_of(run: Path) -> dict[str, bytes]:
    """All files of a run except its options, which hold the folder's name."""
    return {name: content for name, content in files_of(run).items() if name not in _OPTIONS}


_OPTIONS = ("second_level.json", "config.yaml")


def record_patients(network: Path, patients: object) -> None:
    """Write a network anew with these training patients in its description; without any where it is None."""
    about = read_about(network)
    about.pop("training_patients")
    if patients is not None:
        about["training_patients"] = patients
    save_classifier(network, *load_classifier(network), **about)
