"""What fold models say of every slice of series that they were not trained on, for the second level."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from src.cls.dataset import StackDataset
from src.cls.model import ClassifierSpec, TraumaClassifier, load_classifier, metric_shift, probabilities
from src.cls.organs import OrganIndex
from src.cls.run_folder import read_about
from src.core.errors import UserError
from src.core.log import progress
from src.core.runtime import Runtime
from src.core.targets import COLUMNS
from src.data.prepared import PreparedDataset
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

    @classmethod
    def load(cls, path: Path) -> "FirstLevelModel":
        """Raises UserError as `load_classifier` does."""
        return cls(path, *load_classifier(path))


def read_patients(path: Path) -> frozenset[str]:
    """Whom a network was trained on, as its file tells.

    Raises:
        UserError: the file cannot be read, or does not tell.
    """
    told = read_about(path).get("training_patients")
    if not isinstance(told, list) or not told or not all(isinstance(patient, str) for patient in told):
        raise UserError(
            f"{path} does not say whom it was trained on, so a second level cannot learn from it: "
            "train the run with this version of train_cls.py"
        )
    return frozenset(told)


def refuse_own_patients(path: Path, patient_ids: Iterable[str]) -> None:
    """Features of whom a network was trained on look better than those of others will.

    Raises:
        UserError: the network was trained on one of them, or its file does not say on whom.
    """
    known = read_patients(path) & set(patient_ids)
    if known:
        raise UserError(
            f"{path} was trained on patient {min(known)}, so it cannot give features of him to a "
            "second level: use the folds that the run was trained with"
        )


def describe_series(
    models: Sequence[FirstLevelModel],
    prepared: PreparedDataset,
    organs: OrganIndex | None,
    series: pd.DataFrame,
    runtime: Runtime,
    workers: int = 1,
) -> SliceFeatures:
    """Features of some series, by models that were not trained on their patients.

    Args:
        models: their features stand side by side, as described by `describe_stacks`.
        series: rows with `patient_id, series_id`; they become `SliceFeatures.series`.

    Raises:
        UserError: a model that was trained on one of the patients or does not say on whom, models with stacks
            of other lengths, or a series that cannot be read.
    """
    for first in models:
        refuse_own_patients(first.path, series["patient_id"])
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
