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
from src.cls.run_folder import find_folds
from src.cls.second_model import SECOND, find_first_level, load_second_level, predict_described
from src.cls.slice_features import FirstLevelModel, describe_stacks, join_descriptions
from src.cls.views import StackView
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
        self.first = [FirstLevelModel.load(path) for path in find_first_level(folder)]
        for first in self.first:
            first.model.to(runtime.device)
        self.flips = flips
        self.prior = self.first[0].spec.prior
        kinds = [StackKind(first.spec.view, offset) for first in self.first for offset in first.spec.offsets]
        self.stack_kinds = tuple(dict.fromkeys(kinds))

    def predict(self, stacks: Stacks, runtime: Runtime) -> np.ndarray:
        said = []
        for first in self.first:
            spec = replace(first.spec, flips=self.flips or first.spec.flips)
            by_offset = []
            for offset in spec.offsets:
                images, padding = _on_device(stacks[StackKind(spec.view, offset)], runtime)
                described = describe_stacks(first.model, spec, images, padding, runtime)
                by_offset.append((*(part.cpu() for part in described), padding.cpu()))
            said.append((spec.columns, by_offset))
        described = join_descriptions(pd.DataFrame({"series_id": [""]}), said)
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

        A column is the mean of the run's members that tell it; where none does, of the runs that do; the
        prior where no run does.
        """
        answers = np.full((len(self.runs), len(COLUMNS)), np.nan)
        for row, members in enumerate(self.runs):
            total, count = np.zeros(len(COLUMNS)), np.zeros(len(COLUMNS))
            for member in members:
                columns = [COLUMNS.index(name) for name in member.columns]
                total[columns] += member.predict(stacks, self.runtime)
                count[columns] += 1
            answers[row, count > 0] = (total / np.maximum(count, 1))[count > 0]
        is_told = ~np.isnan(answers)
        others = np.where(is_told, answers, 0.0).sum(axis=0) / np.maximum(is_told.sum(axis=0), 1)
        others = np.where(is_told.any(axis=0), others, self.prior.to_numpy())
        return np.where(is_told, answers, others)


def _on_device(stack: StackBatch, runtime: Runtime) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and padding, as a batch of one."""
    return stack.images[None].to(runtime.device), stack.padding[None].to(runtime.device)


def _read_members(run: Path, runtime: Runtime, flips: tuple[str, ...] | None) -> list[Member]:
    second = sorted(path.parent for path in run.glob(f"fold*/{SECOND}"))
    if second:
        return [SecondMember(folder, runtime, flips) for folder in second]
    return [FirstMember(path, runtime, flips) for networks in find_folds(run) for path in networks]
