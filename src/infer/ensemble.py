"""Fold models of one or several runs, averaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from src.cls.model import ClassifierSpec, TraumaClassifier, load_classifier, predict_stack
from src.core.errors import UserError
from src.core.runtime import Runtime
from src.core.targets import COLUMNS
from src.nn.augmentation import centre_crop

StackKind = tuple[tuple[str, ...], int, int]
"""What has to be read of a series: windows, size in pixels, number of slices."""


@dataclass(frozen=True)
class Member:
    """One fold model."""

    path: Path
    model: TraumaClassifier
    spec: ClassifierSpec

    @property
    def stack_kind(self) -> StackKind:
        return self.spec.windows, self.spec.size, self.spec.slices


class Ensemble:
    """The mean of all members' probabilities, each averaged over flips of the stack.

    Args:
        runs: run folders of train_cls.py; every finished fold in them is a member.
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
        """The different stacks that the members want; folds of a run share one."""
        return list(dict.fromkeys(member.stack_kind for member in self.members))

    @property
    def prior(self) -> pd.Series:
        """Mean of the members' weight-aware priors: the 13 probabilities of a patient nobody can look at."""
        return pd.DataFrame([member.spec.prior for member in self.members]).mean()[list(COLUMNS)]

    def predict(self, stacks: dict[StackKind, np.ndarray]) -> np.ndarray:
        """13 probabilities of one series, from its uint8 stacks (T, S, S, C)."""
        predictions = []
        for member in self.members:
            images = centre_crop(stacks[member.stack_kind], member.spec.crop)
            batch = (
                torch.from_numpy(images).permute(0, 3, 1, 2)[None].to(self.runtime.device)
            )  # (1, T, C, H, W)
            with self.runtime.autocast():
                predictions.append(predict_stack(member.model, batch, self.flips or member.spec.tta)[0])
        return torch.stack(predictions).mean(dim=0).cpu().double().numpy()


def _fold_models(run: Path) -> list[Path]:
    if not run.is_dir():
        raise UserError(f"no run folder {run}: --models takes output folders of train_cls.py")
    paths = sorted(run.glob("fold*/model.safetensors"))
    if not paths:
        raise UserError(f"{run} holds no finished fold (fold*/model.safetensors): train_cls.py writes them")
    return paths
