"""Ensemble of the fold models of one or several runs, and of networks that find organs for them."""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from src.cls.fold_models import find_first_level, find_folds, find_second_levels
from src.cls.model import ClassifierSpec, TraumaClassifier, load_classifier, predict_stack
from src.cls.second_features import NetworkOutput, join_outputs, slice_features
from src.cls.second_model import SecondLevel, load_second_level, predict_features
from src.core.errors import UserError
from src.core.targets import COLUMNS
from src.infer.organ_finder import ForwardSettings, OrganFinder
from src.infer.stack_sources import LoadedSeries, StackKind, Stacks
from src.seg.model import SegmenterSpec


@dataclass(frozen=True)
class EnsembleSubset:
    """The part of an ensemble that predicts a series, and its cost."""

    fold_counts: tuple[int, ...]
    """number of folds of each run that predict, from the first on; 0 excludes the run"""
    tta: bool
    """whether to average flips and slice offsets; else one unflipped pass at the middle offset"""
    passes: tuple[int, ...]
    """number of forward passes of each run"""
    needs_organs: bool


class Prediction(NamedTuple):
    """Prediction of an ensemble for a series."""

    probabilities: np.ndarray
    """(runs, 13); NaN in columns that a run does not predict"""
    organs_s: float
    """seconds spent on finding organs"""
    runs_s: tuple[float, ...]
    """seconds spent on the models of each run"""
    note: str = ""
    """note for the report"""


@dataclass(frozen=True)
class Member:
    """A network of a fold; or a fold's second level with the networks that compute its slice features."""

    run: int
    fold: int
    """index of the fold among the finished ones of the run"""
    networks: tuple[tuple[TraumaClassifier, ClassifierSpec], ...]
    second_level: tuple[SecondLevel, ...] = ()
    """models of the second level on the CPU, averaged"""

    @property
    def columns(self) -> list[int]:
        """Indices of the predicted columns among the 13."""
        names = COLUMNS if self.second_level else self.networks[0][1].columns
        return [COLUMNS.index(name) for name in names]

    @property
    def prior(self) -> dict[str, float]:
        """Weight-aware prior of the fold, 13 probabilities."""
        return self.networks[0][1].prior

    @property
    def kinds(self) -> tuple[StackKind, ...]:
        """Kinds of stacks that the networks need."""
        return tuple(StackKind(spec.view, offset) for _, spec in self.networks for offset in spec.offsets)

    @property
    def passes(self) -> int:
        """Number of forward passes for a series."""
        return sum(len(spec.flips) * len(spec.offsets) for _, spec in self.networks)

    def without_tta(self) -> "Member":
        """Return the same networks with one forward pass each: unflipped, at the middle offset."""
        return replace(self, networks=tuple((model, _without_tta(spec)) for model, spec in self.networks))

    def predict(self, stacks: Stacks, settings: ForwardSettings) -> np.ndarray:
        """Predict the probabilities of a series, (columns,)."""
        if self.second_level:
            return self._predict_second_level(stacks, settings)
        ((model, spec),) = self.networks
        with settings.autocast():
            predicted = [
                predict_stack(model, spec, *sample, spec.flips, settings.slices_at_once)[0]
                for sample in _samples(model, spec, stacks, settings)
            ]
        return torch.stack(predicted).mean(dim=0).cpu().double().numpy()

    def _predict_second_level(self, stacks: Stacks, settings: ForwardSettings) -> np.ndarray:
        outputs = []
        for model, spec in self.networks:
            by_offset = []
            with settings.autocast():
                for images, padding in _samples(model, spec, stacks, settings):
                    features, base = slice_features(model, spec, images, padding, settings.slices_at_once)
                    by_offset.append(NetworkOutput(features.cpu(), base.cpu(), padding.cpu()))
            outputs.append((spec, by_offset))
        joined = join_outputs(pd.DataFrame({"series_id": [""]}), outputs)
        predicted = [predict_features(model, joined)[0] for model in self.second_level]
        return torch.stack(predicted).mean(dim=0).double().numpy()


class Ensemble:
    """The members of each run, loaded on the CPU; probabilities are averaged run by run.

    Args:
        runs: run folders of train_cls.py or of the second level; all their finished folds are used.
        weights: weights of the runs, equal by default; a run of weight 0 predicts nothing, but its priors
            count.
        segmenter: run folder of train_seg.py, whose networks find the organs of raw series; not loaded if
            the runs that use organ masks have no weight.
        flips: flips of test-time augmentation; by default each network's own.
        organ_spacing_mm: see `OrganFinder`.

    Raises:
        UserError: a folder without a model, or a segmenter that no run needs.
    """

    def __init__(
        self,
        runs: Sequence[Path],
        weights: Sequence[float] | None = None,
        segmenter: Path | None = None,
        flips: tuple[str, ...] | None = None,
        organ_spacing_mm: float = 0.0,
    ) -> None:
        self.device = torch.device("cpu")
        self.weights = np.array(weights or (1.0,) * len(runs))
        self.members = [
            member for number, run in enumerate(runs) for member in _load_members(number, run, flips)
        ]
        self._predicted = np.zeros((len(runs), len(COLUMNS)), dtype=bool)
        for member in self.members:
            self._predicted[member.run, member.columns] = self.weights[member.run] > 0
        self._finder = None
        if segmenter is None:
            return
        if self.full.needs_organs:
            self._finder = OrganFinder.load(segmenter, organ_spacing_mm)
        elif not _needs_organs(self.members):
            raise UserError(f"none of these models uses organ masks: leave --segmenter {segmenter} out")

    @property
    def segmenter(self) -> SegmenterSpec | None:
        """Description of the networks that find organs; None if there are none."""
        return self._finder and self._finder.spec

    @property
    def prior(self) -> pd.Series:
        """Mean of the members' weight-aware priors: 13 probabilities for a patient without predictions."""
        return pd.DataFrame([member.prior for member in self.members]).mean()[list(COLUMNS)]

    @property
    def full(self) -> EnsembleSubset:
        """The full ensemble."""
        fold_counts = np.zeros(len(self.weights), dtype=int)
        for member in self.members:
            fold_counts[member.run] = (member.fold + 1) * (self.weights[member.run] > 0)
        return self._subset(fold_counts, tta=True)

    @property
    def subsets(self) -> tuple[EnsembleSubset, ...]:
        """The full ensemble and, for late runs, the first fold of each run without TTA if that is less work.

        Finding organs may dominate the cost: late runs then also exclude the runs that need organs, unless
        only these predict some target.
        """
        full = self.full
        one_fold = np.minimum(full.fold_counts, 1)
        organ_runs = sorted({member.run for member in self.members if _needs_organs([member])})
        others = one_fold.copy()
        others[organ_runs] = 0
        if (self._predicted[others > 0].any(axis=0) == self._predicted.any(axis=0)).all():
            one_fold = others
        reduced = self._subset(one_fold, tta=False)
        return (full, reduced) if sum(reduced.passes) < sum(full.passes) else (full,)

    @property
    def stack_kinds(self) -> list[StackKind]:
        """Distinct kinds of stacks that the members need; folds of a run share them."""
        return _kinds(self._choose(self.full.fold_counts, tta=True))

    def copy_to(self, device: torch.device) -> "Ensemble":
        """Return a copy of the ensemble on another device; this one is unchanged."""
        other = copy.deepcopy(self)
        for model, _ in (network for member in other.members for network in member.networks):
            model.to(device)
        if other._finder is not None:
            other._finder.pair.to(device)
        other.device = device
        return other

    def predict(self, series: LoadedSeries, subset: EnsembleSubset, settings: ForwardSettings) -> Prediction:
        """Predict one series.

        A column of a run is the mean of its members that predict it. If the subset excludes all of them, it
        is replaced by the weighted mean of the other runs, or the prior if none of them predicts the column.
        Columns that a run never predicts are NaN in every series, so that `PatientRows` joins runs as the fit
        did with out-of-fold tables; columns that no run predicts are the prior.

        Raises:
            FloatingPointError: a network returns NaN or infinity.
        """
        stacks, members = dict(series.stacks), self._choose(subset.fold_counts, subset.tta)
        note, started = "", time.perf_counter()
        if series.volume is not None and subset.needs_organs:
            kinds = [kind for kind in _kinds(members) if kind.view.needs_masks]
            found, note = self._finder.make_stacks(series.volume, kinds, settings)
            stacks |= found
        organs_s = time.perf_counter() - started
        total, count = np.zeros((2, len(self.weights), len(COLUMNS)))
        runs_s = np.zeros(len(self.weights))
        for member in members:
            started = time.perf_counter()
            total[member.run, member.columns] += member.predict(stacks, settings)
            count[member.run, member.columns] += 1
            runs_s[member.run] += time.perf_counter() - started
        if not np.isfinite(total).all():
            raise FloatingPointError("the models give probabilities that are not finite")
        means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return Prediction(self._fill_excluded(means), organs_s, tuple(runs_s), note)

    def _fill_excluded(self, means: np.ndarray) -> np.ndarray:
        """Replace NaN (runs, 13) in columns that a run predicts for other series."""
        is_known = ~np.isnan(means)
        weights = np.where(is_known, self.weights[:, None], 0.0)
        others = (weights * np.where(is_known, means, 0.0)).sum(axis=0) / np.maximum(
            weights.sum(axis=0), 1e-9
        )
        others = np.where(is_known.any(axis=0), others, self.prior.to_numpy())
        is_due = self._predicted | ~self._predicted.any(axis=0)  # all others are NaN in every series
        return np.where(is_known, means, np.where(is_due, others, np.nan))

    def _subset(self, fold_counts: np.ndarray, tta: bool) -> EnsembleSubset:
        members, passes = self._choose(fold_counts, tta), [0] * len(self.weights)
        for member in members:
            passes[member.run] += member.passes
        return EnsembleSubset(tuple(fold_counts.tolist()), tta, tuple(passes), _needs_organs(members))

    def _choose(self, fold_counts: Sequence[int], tta: bool) -> list[Member]:
        """Return the members of the first folds of each run."""
        chosen = [member for member in self.members if member.fold < fold_counts[member.run]]
        return chosen if tta else [member.without_tta() for member in chosen]


def _load_members(number: int, run: Path, flips: tuple[str, ...] | None) -> list[Member]:
    """Load the members of every finished fold of run `number`."""

    def load(path: Path) -> tuple[TraumaClassifier, ClassifierSpec]:
        model, spec = load_classifier(path)
        return model, replace(spec, flips=flips) if flips else spec

    second = find_second_levels(run)
    if not second:
        folds = enumerate(find_folds(run))
        return [Member(number, fold, (load(path),)) for fold, paths in folds for path in paths]
    return [
        Member(number, fold, tuple(map(load, find_first_level(path.parent))), tuple(load_second_level(path)))
        for fold, path in enumerate(second)
    ]


def _kinds(members: Sequence[Member]) -> list[StackKind]:
    return list(dict.fromkeys(kind for member in members for kind in member.kinds))


def _needs_organs(members: Sequence[Member]) -> bool:
    return any(kind.view.needs_masks for kind in _kinds(members))


def _without_tta(spec: ClassifierSpec) -> ClassifierSpec:
    flip = "none" if "none" in spec.flips else spec.flips[0]
    return replace(spec, flips=(flip,), offsets=(min(spec.offsets, key=lambda offset: abs(offset - 0.5)),))


def _samples(
    model: TraumaClassifier, spec: ClassifierSpec, stacks: Stacks, settings: ForwardSettings
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield images and padding for each offset, as a batch of one, on the model's device."""
    device = next(model.parameters()).device
    for offset in spec.offsets:
        settings.check()
        stack = stacks[StackKind(spec.view, offset)]
        yield stack.images[None].to(device), stack.padding[None].to(device)
