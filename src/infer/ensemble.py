"""Fold models of one or several runs, of the first or the second level, averaged; all of them or fewer."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch

from src.cls.model import ClassifierSpec, load_classifier, predict_stack
from src.cls.run_folder import find_folds
from src.cls.second_model import SECOND, find_first_level, load_second_level, predict_described
from src.cls.slice_features import FirstLevelModel, describe_stacks, join_descriptions
from src.core.targets import COLUMNS
from src.infer.placement import Placement
from src.infer.sources import StackKind, Stacks


@dataclass(frozen=True)
class Share:
    """Which part of an ensemble looks at a series."""

    folds: tuple[int, ...]
    """how many of each run, the first ones; 0 leaves a run out"""
    tta: bool = True
    """whether flips and offsets of the slices are averaged, or one look is taken: no flip, the middle"""


@dataclass(frozen=True)
class Effort:
    """How a share of an ensemble is worked off: in ways that give the same numbers."""

    autocast: Callable[[], AbstractContextManager]
    """of forward passes"""
    slices_at_once: int | None = None
    """that pass a network together; None is all of a stack"""
    check: Callable[[], None] = lambda: None
    """called between networks, offsets and chunks of slices; what it raises ends the work"""


class Member(Protocol):
    """What takes part in an ensemble."""

    columns: tuple[str, ...]
    """that it tells, of the 13"""
    prior: Mapping[str, float]

    def kinds(self, tta: bool) -> tuple[StackKind, ...]:
        """Stacks that it wants of a series."""

    def count_passes(self, tta: bool) -> int:
        """Forward passes for a series."""

    def predict(self, stacks: Stacks, tta: bool, effort: Effort) -> np.ndarray:
        """Probabilities of one series, (columns,)."""


class FirstMember:
    """One network of a fold, averaged over flips and offsets of the stack."""

    def __init__(self, path: Path, placement: Placement, flips: tuple[str, ...] | None) -> None:
        model, spec = load_classifier(path)
        self.model, self.spec = model.to(placement.device), _with_flips(spec, flips)
        self.columns, self.prior = spec.columns, spec.prior

    def kinds(self, tta: bool) -> tuple[StackKind, ...]:
        return _kinds(_thin(self.spec, tta))

    def count_passes(self, tta: bool) -> int:
        return _count_passes(_thin(self.spec, tta))

    def predict(self, stacks: Stacks, tta: bool, effort: Effort) -> np.ndarray:
        spec = _thin(self.spec, tta)
        answers = []
        for kind in _kinds(spec):
            effort.check()
            parts = _on_device(stacks, kind, self.model)
            with effort.autocast():
                answers.append(predict_stack(self.model, spec, *parts, spec.flips, effort.slices_at_once)[0])
        return torch.stack(answers).mean(dim=0).cpu().double().numpy()


class SecondMember:
    """The second level of a fold, over the first-level networks that lie with it."""

    columns = COLUMNS

    def __init__(self, folder: Path, placement: Placement, flips: tuple[str, ...] | None) -> None:
        self.models = load_second_level(folder / SECOND)
        loaded = [FirstLevelModel.load(path) for path in find_first_level(folder)]
        self.first = [(own.model.to(placement.device), _with_flips(own.spec, flips)) for own in loaded]
        self.prior = loaded[0].spec.prior

    def kinds(self, tta: bool) -> tuple[StackKind, ...]:
        return tuple(dict.fromkeys(kind for _, spec in self.first for kind in _kinds(_thin(spec, tta))))

    def count_passes(self, tta: bool) -> int:
        return sum(_count_passes(_thin(spec, tta)) for _, spec in self.first)

    def predict(self, stacks: Stacks, tta: bool, effort: Effort) -> np.ndarray:
        said = []
        for model, full in self.first:
            spec = _thin(full, tta)
            by_offset = []
            for kind in _kinds(spec):
                effort.check()
                images, padding = _on_device(stacks, kind, model)
                with effort.autocast():
                    described = describe_stacks(model, spec, images, padding, effort.slices_at_once)
                by_offset.append((*(part.cpu() for part in described), padding.cpu()))
            said.append((spec.columns, by_offset))
        described = join_descriptions(pd.DataFrame({"series_id": [""]}), said)
        answers = [predict_described(model, described)[0] for model in self.models]
        return torch.stack(answers).mean(dim=0).double().numpy()


class Ensemble:
    """The members of each run, whose probabilities are averaged run by run.

    Args:
        runs: run folders of train_cls.py or of the second level; every finished fold in them takes part.
        weights: of the runs; one of weight 0 is not asked.
        flips: of test-time augmentation; by default each member's own.

    Raises:
        UserError: a folder without a fold model.
    """

    def __init__(
        self,
        runs: Sequence[Path],
        placement: Placement,
        weights: Sequence[float],
        flips: tuple[str, ...] | None = None,
    ):
        self.runs = [_read_folds(run, placement, flips) for run in runs]
        self.weights = tuple(weights)
        self._told = np.array(  # (runs, 13) bool
            [_told_columns(run) & (weight > 0) for run, weight in zip(self.runs, self.weights, strict=True)]
        )

    @property
    def members(self) -> list[Member]:
        return [member for run in self.runs for fold in run for member in fold]

    def stack_kinds(self, share: Share | None = None) -> list[StackKind]:
        """The different stacks that a share's members want, by default all; folds of a run share them."""
        share = share or self.all
        members = [member for run in self._chosen(share) for member in run]
        return list(dict.fromkeys(kind for member in members for kind in member.kinds(share.tta)))

    @property
    def prior(self) -> pd.Series:
        """Mean of the members' weight-aware priors: the 13 probabilities of a patient nobody can look at."""
        return pd.DataFrame([member.prior for member in self.members]).mean()[list(COLUMNS)]

    @property
    def all(self) -> Share:
        """Everything."""
        return Share(
            tuple(len(run) if weight else 0 for run, weight in zip(self.runs, self.weights, strict=True))
        )

    @property
    def shares(self) -> list[Share]:
        """What is done with ever less time: everything, then ever fewer forward passes.

        First flips and offsets go, then folds, the last one of the run that has most left, until each run has
        one; then runs, the one with the least weight first, until one is left. Finding organs may cost more
        than all this: where runs look at none, these are left alone at the end, from all their passes on.
        """
        runs = [run for run, count in enumerate(self.all.folds) if count]
        plain = [run for run in runs if not self.needs_organs(self._only([run]))]
        shares = self._thin_out(runs)
        if 0 < len(plain) < len(runs):
            shares = [share for share in shares if self.needs_organs(share)] + self._thin_out(plain)
        return shares

    def _thin_out(self, runs: Sequence[int]) -> list[Share]:
        """From all of these runs to one fold of one, each share with fewer passes than those before it."""
        full = self._only(runs)
        shares = [full, replace(full, tta=False)]
        folds = list(full.folds)
        while max(folds) > 1:
            most = max(runs, key=lambda run: (folds[run], -self.weights[run], run))
            folds[most] -= 1
            shares.append(Share(tuple(folds), tta=False))
        for run in sorted(runs, key=lambda run: (self.weights[run], -run))[:-1]:
            folds[run] = 0
            shares.append(Share(tuple(folds), tta=False))
        passes = [sum(self.count_passes(share)) for share in shares]
        return [
            share for place, share in enumerate(shares) if place == 0 or passes[place] < min(passes[:place])
        ]

    def _only(self, runs: Sequence[int]) -> Share:
        return Share(tuple(count if run in runs else 0 for run, count in enumerate(self.all.folds)))

    def needs_organs(self, share: Share) -> bool:
        """Whether models of a share look at them."""
        return any(kind.view.needs_masks for kind in self.stack_kinds(share))

    def count_passes(self, share: Share) -> tuple[int, ...]:
        """Forward passes for a series, of each run."""
        return tuple(sum(member.count_passes(share.tta) for member in run) for run in self._chosen(share))

    def predict(self, stacks: Stacks, share: Share, effort: Effort) -> tuple[np.ndarray, tuple[float, ...]]:
        """Look at one series.

        A column of a run is the mean of its members that tell it. Where the share leaves all of these out,
        the weighted mean of the other runs stands in, or the prior where none of them tells the column.

        Args:
            stacks: one of each kind that the share wants.

        Returns:
            Probabilities (runs, 13), and the seconds that each run took. Columns that a run does not tell are
            NaN in every series, for `PatientRows` to join runs as the fit to out-of-fold tables did; those
            that no run tells are the prior.

        Raises:
            FloatingPointError: a member gives what is no number.
        """
        answers, seconds = np.full((len(self.runs), len(COLUMNS)), np.nan), []
        for row, members in enumerate(self._chosen(share)):
            started = time.perf_counter()
            total, count = np.zeros(len(COLUMNS)), np.zeros(len(COLUMNS))
            for member in members:
                columns = [COLUMNS.index(name) for name in member.columns]
                total[columns] += member.predict(stacks, share.tta, effort)
                count[columns] += 1
            seconds.append(time.perf_counter() - started)
            if not np.isfinite(total).all():
                raise FloatingPointError("the models give probabilities that are not finite")
            answers[row, count > 0] = (total / np.maximum(count, 1))[count > 0]
        is_told = ~np.isnan(answers)
        weights = np.where(is_told, np.array(self.weights)[:, None], 0.0)
        others = (weights * np.where(is_told, answers, 0.0)).sum(axis=0) / np.maximum(
            weights.sum(axis=0), 1e-9
        )
        others = np.where(is_told.any(axis=0), others, self.prior.to_numpy())
        is_due = self._told | ~self._told.any(axis=0)  # the rest is NaN in every series
        return np.where(is_told, answers, np.where(is_due, others, np.nan)), tuple(seconds)

    def _chosen(self, share: Share) -> list[list[Member]]:
        """Of each run, the members of the folds that take part."""
        return [
            [member for fold in run[:count] for member in fold]
            for run, count in zip(self.runs, share.folds, strict=True)
        ]


def _told_columns(run: Sequence[Sequence[Member]]) -> np.ndarray:
    """Whether a member of the run tells them, bool (13,)."""
    told = {column for fold in run for member in fold for column in member.columns}
    return np.array([column in told for column in COLUMNS])


def _with_flips(spec: ClassifierSpec, flips: tuple[str, ...] | None) -> ClassifierSpec:
    return replace(spec, flips=flips) if flips else spec


def _thin(spec: ClassifierSpec, tta: bool) -> ClassifierSpec:
    if tta:
        return spec
    flip = "none" if "none" in spec.flips else spec.flips[0]
    return replace(spec, flips=(flip,), offsets=(min(spec.offsets, key=lambda offset: abs(offset - 0.5)),))


def _kinds(spec: ClassifierSpec) -> tuple[StackKind, ...]:
    return tuple(StackKind(spec.view, offset) for offset in spec.offsets)


def _count_passes(spec: ClassifierSpec) -> int:
    return len(spec.flips) * len(spec.offsets)


def _on_device(stacks: Stacks, kind: StackKind, model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and padding, as a batch of one, where the model is."""
    device = next(model.parameters()).device
    return stacks[kind].images[None].to(device), stacks[kind].padding[None].to(device)


def _read_folds(run: Path, placement: Placement, flips: tuple[str, ...] | None) -> list[list[Member]]:
    second = sorted(path.parent for path in run.glob(f"fold*/{SECOND}"))
    if second:
        return [[SecondMember(folder, placement, flips)] for folder in second]
    return [[FirstMember(path, placement, flips) for path in networks] for networks in find_folds(run)]
