"""What fold models say of every slice of series that they were not trained on, for the second level."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from src.cls.dataset import StackDataset
from src.cls.model import ClassifierSpec, TraumaClassifier, load_classifier, metric_shift, probabilities
from src.cls.organs import OrganIndex
from src.cls.run_folder import find_networks, read_about
from src.cls.stacks import check_view
from src.core.errors import UserError
from src.core.log import progress, say
from src.core.runtime import Runtime
from src.core.targets import COLUMNS
from src.data.stack import PreparedDataset
from src.nn.augmentation import FLIPS
from src.nn.loading import StackLoader

BATCH = 4
"""Stacks at a time."""


@dataclass(frozen=True)
class SliceFeatures:
    """Features of all slices of some series, and what the first level says of each series."""

    series: pd.DataFrame
    """patient_id, series_id, fold; a row a series"""
    features: Tensor
    """float32 (N, T, F)"""
    padding: Tensor
    """bool (N, T)"""
    base: Tensor
    """float32 (N, 13) probabilities of the first level"""

    def select(self, rows: np.ndarray) -> "SliceFeatures":
        """The series at these places, or where this is true."""
        chosen = torch.from_numpy(np.flatnonzero(rows) if rows.dtype == bool else rows)
        return SliceFeatures(
            self.series.iloc[chosen.numpy()].reset_index(drop=True),
            *(part[chosen] for part in (self.features, self.padding, self.base)),
        )


@dataclass(frozen=True)
class FirstLevelModel:
    """A network of a fold of a first-level run."""

    path: Path
    model: TraumaClassifier
    spec: ClassifierSpec
    patients: frozenset[str]
    """whom it was trained on"""

    @classmethod
    def load(cls, path: Path) -> "FirstLevelModel":
        """Raises UserError as `load_classifier` does."""
        model, spec = load_classifier(path)
        return cls(path, model, spec, frozenset(read_about(path).get("training_patients", ())))

    def refuse_own_patients(self, patient_ids: Sequence[str]) -> None:
        """Features of whom a model was trained on look better than those of others will.

        Raises:
            UserError: the model was trained on one of them.
        """
        known = self.patients & set(patient_ids)
        if known:
            raise UserError(
                f"{self.path} was trained on patient {min(known)}, so it cannot give features of him to a "
                "second level: use the folds that the run was trained with"
            )


def find_models(run: Path, fold: int) -> list[Path]:
    """The networks of a fold of a run: one, or one for each target.

    Raises:
        UserError: the fold is not finished.
    """
    paths = find_networks(run / f"fold{fold}")
    if not paths:
        raise UserError(f"{run} has no finished fold {fold}: train_cls.py trains it")
    return paths


def out_of_fold_features(
    runs: Sequence[Path],
    prepared: PreparedDataset,
    organs: OrganIndex | None,
    series: pd.DataFrame,
    runtime: Runtime,
    workers: int = 1,
) -> SliceFeatures:
    """Features of every series, by the models of its own fold, which never saw its patient.

    Args:
        runs: first-level runs of train_cls.py on the same folds; their features stand side by side.
        series: rows with `patient_id, series_id, fold`.

    Raises:
        UserError: a model that was trained on a patient of its fold, or runs with stacks of other lengths.
    """
    folds = {fold: rows for fold, rows in series.groupby("fold")}
    paths = {fold: [path for run in runs for path in find_models(run, int(fold))] for fold in folds}
    parts = []
    for fold, rows in folds.items():
        rows = rows[["patient_id", "series_id", "fold"]].reset_index(drop=True)
        models = [FirstLevelModel.load(path) for path in paths[fold]]
        for first in models:
            first.refuse_own_patients(rows["patient_id"])
            check_view(prepared, first.spec.view)
        parts.append(describe_series(models, prepared, organs, rows, runtime, workers))
        say(f"fold {fold}: {len(rows)} series by {len(models)} networks")
    if len({part.features.shape[1:] for part in parts}) > 1:
        raise UserError("the folds of the runs give other features: they are not of one run each")
    tensors = zip(*((part.features, part.padding, part.base) for part in parts), strict=True)
    return SliceFeatures(
        pd.concat([part.series for part in parts], ignore_index=True), *(torch.cat(own) for own in tensors)
    )


def describe_series(
    models: Sequence[FirstLevelModel],
    prepared: PreparedDataset,
    organs: OrganIndex | None,
    series: pd.DataFrame,
    runtime: Runtime,
    workers: int = 1,
) -> SliceFeatures:
    """Features of some series by some models.

    Raises:
        UserError: models with stacks of other lengths.
    """
    lengths = {first.spec.view.slices for first in models}
    if len(lengths) > 1:
        raise UserError(f"the runs have stacks of {sorted(lengths)} slices: a second level needs one length")
    said = []
    for first in models:
        first.model.to(runtime.device)
        by_offset = []
        for offset in first.spec.offsets:
            dataset = StackDataset(prepared, series, first.spec.view, organs, offset=offset)
            loader = StackLoader(dataset, workers, batch_size=BATCH)
            own = []
            for batch in progress(loader, len(loader), first.path.parent.name):
                parts = (part.to(runtime.device) for part in (batch.images, batch.padding))
                with runtime.autocast():
                    described = describe_stacks(first.model, first.spec, *parts)
                own.append((*(part.cpu() for part in described), batch.padding))
            by_offset.append(tuple(torch.cat(part) for part in zip(*own, strict=True)))
        said.append((first.spec.columns, by_offset))
    return join_descriptions(series, said)


def join_descriptions(
    series: pd.DataFrame, said: Sequence[tuple[tuple[str, ...], list[tuple[Tensor, Tensor, Tensor]]]]
) -> SliceFeatures:
    """Put what several networks say of the same series side by side.

    Args:
        series: a row a series.
        said: of each network its columns, and for each offset of the slices features (N, T, F),
            probabilities (N, columns) and padding (N, T); offsets are averaged.
    """
    features, totals, paddings = [], [], []
    for columns, by_offset in said:
        slices, base, padding = zip(*by_offset, strict=True)
        features.append(torch.stack(slices).mean(dim=0))
        totals.append((columns, torch.stack(base).mean(dim=0)))
        paddings.append(torch.stack(padding).all(dim=0))
    padding = torch.stack(paddings).all(dim=0)
    return SliceFeatures(series, torch.cat(features, dim=2), padding, mean_by_column(totals))


@torch.inference_mode()
def describe_stacks(
    model: TraumaClassifier,
    spec: ClassifierSpec,
    images: Tensor,
    padding: Tensor,
    slices_at_once: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Features (B, T, F) and probabilities (B, columns), averaged over the spec's flips.

    Of each slice: the logits that the classifier would give if this slice alone were pooled, those of the
    slice head where there is one, and the logarithm of the slice's share in the pooling.
    """
    slices, answers = [], []
    for flip in spec.flips:
        answer = model(
            images.flip(FLIPS[flip]),
            padding if spec.view.is_padded else None,
            slices_at_once=slices_at_once,
        )
        parts = [model.classifier(answer.slice_features).float()]
        if answer.slice_logits is not None:
            parts.append(answer.slice_logits.float())
        parts.append(answer.weights.float().clamp(min=1e-4).log()[..., None])
        slices.append(torch.cat(parts, dim=-1).masked_fill(padding[..., None], 0.0))
        answers.append(probabilities(answer.logits + metric_shift(spec).to(images.device), spec.targets))
    return torch.stack(slices).mean(dim=0), torch.stack(answers).mean(dim=0)


def mean_by_column(totals: Sequence[tuple[tuple[str, ...], Tensor]]) -> Tensor:
    """(N, 13) means of probabilities (N, columns) over those that tell a column.

    Raises:
        UserError: nobody tells one.
    """
    columns = []
    for name in COLUMNS:
        told = [base[:, own.index(name)] for own, base in totals if name in own]
        if not told:
            raise UserError(f"no network of the runs tells {name}: a second level needs all targets")
        columns.append(torch.stack(told).mean(dim=0))
    return torch.stack(columns, dim=1)
