"""Fold models of one or several runs, of the first or the second level, averaged."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch

from src.cls.dataset import StackBatch
from src.cls.model import load_classifier, predict_stack
from src.cls.second_model import SECOND, load_second_level, predict_described
from src.cls.slice_features import FirstLevelModel, SliceFeatures, describe_stacks, mean_by_column
from src.cls.views import StackView
from src.core.errors import UserError
from src.core.runtime import Runtime
from src.core.targets import COLUMNS


class StackKind(NamedTuple):
    """A stack that has to be cut out of a series."""

    view: StackView
    offset: float
    """of its slices, 0..1"""


Stacks = Mapping[StackKind, StackBatch]


class Member(Protocol):
    """What takes part in an ensemble."""

    columns: tuple[str, ...]
    """that it tells, of the 13"""
    stack_kinds: tuple[StackKind, ...]
    """that it wants of a series"""
    prior: Mapping[str, float]

    def predict(self, stacks: Stacks, runtime: Runtime) -> np.ndarray:
        """Probabilities of one series, (columns,)."""


class FirstMember:
    """One network of a fold, averaged over flips and offsets of the stack."""

    def __init__(self, path: Path, runtime: Runtime, flips: tuple[str, ...] | None) -> None:
        self.model, self.spec = load_classifier(path)
        self.model.to(runtime.device)
        self.flips = flips or self.spec.flips
        self.columns, self.prior = self.spec.columns, self.spec.prior
        self.stack_kinds = tuple(StackKind(self.spec.view, offset) for offset in self.spec.offsets)

    def predict(self, stacks: Stacks, runtime: Runtime) -> np.ndarray:
        answers = []
        for kind in self.stack_kinds:
            parts = _on_device(stacks[kind], runtime)
            with runtime.autocast():
                answers.append(predict_stack(self.model, self.spec, *parts, self.flips)[0])
        return torch.stack(answers).mean(dim=0).cpu().double().numpy()


class SecondMember:
    """The second level of a fold, over the first-level networks that lie with it."""

    columns = COLUMNS

    def __init__(self, folder: Path, runtime: Runtime, flips: tuple[str, ...] | None) -> None:
        self.models = load_second_level(folder / SECOND)
        runs = sorted((folder / "first").iterdir())
        self.first = [
            FirstLevelModel.load(path) for run in runs for path in sorted(run.rglob("*.safetensors"))
        ]
        for first in self.first:
            first.model.to(runtime.device)
        self.flips = flips
        self.prior = self.first[0].spec.prior
        self.stack_kinds = tuple(dict.fromkeys(StackKind(first.spec.view, 0.5) for first in self.first))

    def predict(self, stacks: Stacks, runtime: Runtime) -> np.ndarray:
        features, totals, paddings = [], [], []
        for first in self.first:
            parts = _on_device(stacks[StackKind(first.spec.view, 0.5)], runtime)
            spec = replace(first.spec, flips=self.flips or first.spec.flips)
            slices, base = describe_stacks(first.model, spec, *parts, runtime)
            features.append(slices.cpu())
            totals.append((spec.columns, base.cpu()))
            paddings.append(parts[1].cpu())
        series = pd.DataFrame({"patient_id": [""], "series_id": [""]})
        padding = torch.stack(paddings).all(dim=0)
        described = SliceFeatures(series, torch.cat(features, dim=2), padding, mean_by_column(totals))
        answers = [predict_described(model, described)[0] for model in self.models]
        return torch.stack(answers).mean(dim=0).double().numpy()


class Ensemble:
    """The members of each run, whose probabilities are averaged run by run.

    Args:
        runs: run folders of train_cls.py or of the second level; every finished fold in them takes part.
        flips: of test-time augmentation; by default each member's own.

    Raises:
        UserError: a folder without a fold model.
    """

    def __init__(self, runs: Sequence[Path], runtime: Runtime, flips: tuple[str, ...] | None = None):
        self.runs = [_read_members(run, runtime, flips) for run in runs]
        self.runtime = runtime

    @property
    def members(self) -> list[Member]:
        return [member for run in self.runs for member in run]

    @property
    def stack_kinds(self) -> list[StackKind]:
        """The different stacks that the members want; folds of a run share them."""
        return list(dict.fromkeys(kind for member in self.members for kind in member.stack_kinds))

    @property
    def prior(self) -> pd.Series:
        """Mean of the members' weight-aware priors: the 13 probabilities of a patient nobody can look at."""
        return pd.DataFrame([member.prior for member in self.members]).mean()[list(COLUMNS)]

    def predict(self, stacks: Stacks) -> np.ndarray:
        """Probabilities of one series from a stack of each kind, (runs, 13).

        A column is the mean of the run's members that tell it; the prior where none does.
        """
        answers = []
        for members in self.runs:
            total, count = np.zeros(len(COLUMNS)), np.zeros(len(COLUMNS))
            for member in members:
                columns = [COLUMNS.index(name) for name in member.columns]
                total[columns] += member.predict(stacks, self.runtime)
                count[columns] += 1
            answers.append(np.where(count > 0, total / np.maximum(count, 1), self.prior.to_numpy()))
        return np.stack(answers)


def _on_device(stack: StackBatch, runtime: Runtime) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and padding, as a batch of one."""
    return stack.images[None].to(runtime.device), stack.padding[None].to(runtime.device)


def _read_members(run: Path, runtime: Runtime, flips: tuple[str, ...] | None) -> list[Member]:
    if not run.is_dir():
        raise UserError(f"no run folder {run}: --models takes output folders of train_cls.py")
    second = sorted(path.parent for path in run.glob(f"fold*/{SECOND}"))
    if second:
        return [SecondMember(folder, runtime, flips) for folder in second]
    paths = sorted([*run.glob("fold*/model.safetensors"), *run.glob("fold*/*/model.safetensors")])
    if not paths:
        raise UserError(f"{run} holds no finished fold (fold*/model.safetensors): train_cls.py writes them")
    return [FirstMember(path, runtime, flips) for path in paths]
