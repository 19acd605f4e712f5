"""Fold models of one or several runs, averaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from src.cls.dataset import StackBatch
from src.cls.model import ClassifierSpec, TraumaClassifier, load_classifier, predict_stack
from src.cls.views import StackView
from src.core.errors import UserError
from src.core.runtime import Runtime
from src.core.targets import COLUMNS


class StackKind(NamedTuple):
    """A stack that has to be cut out of a series."""

    view: StackView
    offset: float
    """of its slices, 0..1"""


@dataclass(frozen=True)
class Member:
    """One network of a fold."""

    path: Path
    model: TraumaClassifier
    spec: ClassifierSpec

    @property
    def stack_kinds(self) -> list[StackKind]:
        return [StackKind(self.spec.view, offset) for offset in self.spec.offsets]


class Ensemble:
    """The mean of all members' probabilities, each averaged over flips and offsets of the stack.

    Args:
        runs: run folders of train_cls.py; every finished fold in them takes part.
        flips: of test-time augmentation; by default each member's own.

    Raises:
        UserError: a folder without a fold model.
    """

    def __init__(self, runs: Sequence[Path], runtime: Runtime, flips: tuple[str, ...] | None = None):
        paths = [path for run in runs for path in _fold_models(run)]
        self.members = [Member(path, *load_classifier(path)) for path in paths]
        for member in self.members:
            member.model.to(runtime.device)
        self.runtime, self.flips = runtime, flips

    @property
    def stack_kinds(self) -> list[StackKind]:
        """The different stacks that the members want; folds of a run share them."""
        return list(dict.fromkeys(kind for member in self.members for kind in member.stack_kinds))

    @property
    def prior(self) -> pd.Series:
        """Mean of the members' weight-aware priors: the 13 probabilities of a patient nobody can look at."""
        return pd.DataFrame([member.spec.prior for member in self.members]).mean()[list(COLUMNS)]

    def predict(self, stacks: dict[StackKind, StackBatch]) -> np.ndarray:
        """13 probabilities of one series, from a stack of each kind.

        A column is the mean of the members that tell it; the prior where none does.
        """
        total, count = np.zeros(len(COLUMNS)), np.zeros(len(COLUMNS))
        for member in self.members:
            columns = [COLUMNS.index(name) for name in member.spec.columns]
            flips = self.flips or member.spec.flips
            for kind in member.stack_kinds:
                stack = stacks[kind]
                parts = (part[None].to(self.runtime.device) for part in (stack.images, stack.padding))
                with self.runtime.autocast():
                    answer = predict_stack(member.model, member.spec, *parts, flips)[0]
                total[columns] += answer.cpu().double().numpy() / len(member.stack_kinds)
            count[columns] += 1
        return np.where(count > 0, total / np.maximum(count, 1), self.prior.to_numpy())


def _fold_models(run: Path) -> list[Path]:
    if not run.is_dir():
        raise UserError(f"no run folder {run}: --models takes output folders of train_cls.py")
    paths = sorted([*run.glob("fold*/model.safetensors"), *run.glob("fold*/*/model.safetensors")])
    if not paths:
        raise UserError(f"{run} holds no finished fold (fold*/model.safetensors): train_cls.py writes them")
    return paths
