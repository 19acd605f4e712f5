"""Input of the second level: features of every slice, computed by first-level networks."""

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from src.cls.dataset import StackDataset
from src.cls.fold_models import read_about
from src.cls.model import (
    ClassifierSpec,
    TraumaClassifier,
    load_classifier,
    metric_shift,
    probabilities,
    read_spec,
)
from src.cls.organs import OrganIndex
from src.cls.views import StackView
from src.core.errors import UserError
from src.core.log import progress, say
from src.core.runtime import Runtime
from src.core.targets import COLUMNS
from src.data.packed import PackedSlices
from src.data.prepared import PreparedDataset
from src.nn.augmentation import FLIPS
from src.nn.loading import StackLoader
from src.nn.weights_file import read_weights, save_weights

BATCH = 4
"""Stacks per forward pass of the first level."""

VERSION = 2
"""Version of the features from `slice_features`; part of the key of stored features."""


class ViewFeatures(NamedTuple):
    """Features of the slices that one view of the first level shows of N series."""

    features: Tensor
    """float32 (N, T, F)"""
    padding: Tensor
    """bool (N, T), True after the last slice"""

    def take(self, rows: Tensor) -> "ViewFeatures":
        """Return those of some series, by index."""
        return ViewFeatures(self.features[rows], self.padding[rows])

    @classmethod
    def join(cls, parts: Sequence["ViewFeatures"]) -> "ViewFeatures":
        """Return those of the series of all parts."""
        return cls(*map(torch.cat, zip(*parts, strict=True)))


@dataclass(frozen=True)
class SliceFeatures:
    """Features of slices of some series, by view, and the first level's probabilities for each series."""

    series: pd.DataFrame
    """patient_id, series_id, fold; one row per series"""
    views: tuple[ViewFeatures, ...]
    """slices and features of each view of the first level: another region has other slices"""
    base: Tensor
    """float32 (N, 13) probabilities of the first level"""

    @property
    def widths(self) -> tuple[int, ...]:
        """F of each view."""
        return tuple(view.features.shape[2] for view in self.views)

    def select(self, rows: np.ndarray) -> "SliceFeatures":
        """Return the series where `rows`, bool (N,), is True."""
        chosen = torch.from_numpy(np.flatnonzero(rows))
        views = tuple(view.take(chosen) for view in self.views)
        return SliceFeatures(self.series[rows].reset_index(drop=True), views, self.base[chosen])

    @classmethod
    def join(cls, parts: Sequence["SliceFeatures"]) -> "SliceFeatures":
        """Return the series of all parts, which have the same views."""
        return cls(
            pd.concat([part.series for part in parts], ignore_index=True),
            tuple(map(ViewFeatures.join, zip(*(part.views for part in parts), strict=True))),
            torch.cat([part.base for part in parts]),
        )


@dataclass(frozen=True)
class FirstNetwork:
    """A trained network of a fold of a first-level run, without its weights."""

    path: Path
    digest: str
    """SHA-256 of the file"""
    training_patients: frozenset[str]
    spec: ClassifierSpec

    @classmethod
    def read(cls, path: Path) -> "FirstNetwork":
        """Read a network's file. Raises `UserError`: unreadable, or no record of the training patients."""
        patients = read_about(path).get("training_patients")
        is_list = isinstance(patients, list) and len(patients) > 0
        if not is_list or not all(isinstance(patient, str) for patient in patients):
            raise UserError(
                f"{path} does not record its training patients, so a second level cannot learn from it: "
                "train the run with this version of train_cls.py"
            )
        return cls(path, file_digest(path), frozenset(patients), read_spec(path))

    def require_held_out(self, patient_ids: Iterable[str]) -> None:
        """Check that the network was trained on none of these patients.

        Features of training patients look better than those of others, so a second level would learn to trust
        them too much.
        """
        seen = self.training_patients & set(patient_ids)
        if seen:
            raise UserError(
                f"{self.path} was trained on patient {min(seen)}, so it cannot give features of this patient "
                "to a second level: use the folds that the run was trained with"
            )

    def copy_to(self, path: Path) -> None:
        """Copy the file, and check that it has not changed since it was read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.path, path)
        if file_digest(path) != self.digest:
            raise UserError(f"{self.path} was rewritten while the second level was running: start it again")


class NetworkOutput(NamedTuple):
    """Output of one network for N series, averaged over flips."""

    features: Tensor
    """float32 (N, T, F of the network)"""
    base: Tensor
    """float32 (N, columns of the network) probabilities"""
    padding: Tensor
    """bool (N, T)"""


def compute_features(
    networks: Sequence[FirstNetwork],
    prepared: PreparedDataset,
    organs: OrganIndex | None,
    series: pd.DataFrame,
    runtime: Runtime,
    workers: int = 1,
    cache: Path | None = None,
) -> SliceFeatures:
    """Compute features of series with networks that were not trained on their patients.

    Args:
        networks: features of those with the same view are concatenated, see `slice_features`.
        series: rows with `patient_id, series_id`; they become `SliceFeatures.series`.
        cache: folder for raw copies of the slices, which are then read instead of PNG.

    Raises:
        UserError: a network was trained on a patient, a series is unreadable, or features are not finite.
    """
    outputs = []
    for network in networks:
        network.require_held_out(series["patient_id"])
        model, spec = load_classifier(network.path)
        model.to(runtime.device)
        packed = None if cache is None else PackedSlices(prepared, spec.view.windows, cache)
        by_offset = []
        for offset in spec.offsets:
            dataset = StackDataset(prepared, series, spec.view, organs, packed=packed, offset=offset)
            loader = StackLoader(dataset, workers, batch_size=BATCH)
            batches = []
            for batch in progress(loader, len(loader), network.path.parent.name):
                images, padding = batch.images.to(runtime.device), batch.padding.to(runtime.device)
                with runtime.autocast():
                    features, base = slice_features(model, spec, images, padding)
                batches.append((features.cpu(), base.cpu(), batch.padding))
            by_offset.append(NetworkOutput(*(torch.cat(part) for part in zip(*batches, strict=True))))
        outputs.append((spec, by_offset))
    computed = join_outputs(series, outputs)
    is_finite = computed.base.isfinite().all(dim=1)
    for view in computed.views:
        is_finite &= view.features.isfinite().all(dim=(1, 2))
    if not is_finite.all():
        row = series.iloc[int((~is_finite).nonzero()[0])]
        raise UserError(
            f"the features of {row.patient_id}/{row.series_id} are not finite: give --precision fp32"
        )
    return computed


@torch.inference_mode()
def slice_features(
    model: TraumaClassifier,
    spec: ClassifierSpec,
    images: Tensor,
    padding: Tensor,
    slices_at_once: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return features (B, T, F) and probabilities (B, columns), averaged over the spec's flips.

    Features of each slice: the classifier's logits if this slice alone were pooled, the logits of the slice
    head if there is one, and the logarithm of the slice's weight in the pooling.
    """
    slices, predicted = [], []
    for flip in spec.flips:
        output = model(
            images.flip(FLIPS[flip]),
            padding if spec.view.is_padded else None,
            slices_at_once=slices_at_once,
        )
        parts = [model.classifier(output.slice_features).float()]
        if output.slice_logits is not None:
            parts.append(output.slice_logits.float())
        parts.append(output.weights.float().clamp(min=1e-4).log()[..., None])
        slices.append(torch.cat(parts, dim=-1).masked_fill(padding[..., None], 0.0))
        predicted.append(probabilities(output.logits + metric_shift(spec).to(images.device), spec.targets))
    return torch.stack(slices).mean(dim=0), torch.stack(predicted).mean(dim=0)


def join_outputs(
    series: pd.DataFrame, outputs: Sequence[tuple[ClassifierSpec, Sequence[NetworkOutput]]]
) -> SliceFeatures:
    """Join the outputs of several networks for the same series.

    Args:
        series: one row per series.
        outputs: per network, its spec and its output for each offset of the slices. Offsets are averaged,
            features of one view concatenated, and each column is the mean of the networks that predict it.

    Raises:
        UserError: no network predicts a column.
    """
    by_view: dict[StackView, list[ViewFeatures]] = {}
    by_column: dict[str, list[Tensor]] = {name: [] for name in COLUMNS}
    for spec, by_offset in outputs:
        features = torch.stack([output.features for output in by_offset]).mean(dim=0)
        padding = torch.stack([output.padding for output in by_offset]).all(dim=0)
        by_view.setdefault(spec.view, []).append(ViewFeatures(features, padding))
        base = torch.stack([output.base for output in by_offset]).mean(dim=0)
        for place, name in enumerate(spec.columns):
            by_column[name].append(base[:, place])
    missing = [name for name, values in by_column.items() if not values]
    if missing:
        raise UserError(f"no network of the runs predicts {missing[0]}: a second level needs all targets")
    base = torch.stack([torch.stack(values).mean(dim=0) for values in by_column.values()], dim=1)
    views = tuple(
        ViewFeatures(
            torch.cat([each.features for each in alike], dim=2),
            torch.stack([each.padding for each in alike]).all(dim=0),
        )
        for alike in by_view.values()
    )
    return SliceFeatures(series, views, base)


def save_features(path: Path, computed: SliceFeatures, key: str) -> None:
    """Save features with `key`, a digest of everything that they depend on."""
    tensors = {"base": computed.base}
    for number, view in enumerate(computed.views):
        tensors |= {f"{name}{number}": tensor for name, tensor in view._asdict().items()}
    save_weights(path, tensors, key=key)


def load_features(path: Path, series: pd.DataFrame, key: str) -> SliceFeatures | None:
    """Load features of `series` saved under the same key; None if there are none, or they are unusable."""
    if not path.exists():
        return None
    try:
        found, tensors = read_weights(path, "features of a fold", lambda metadata: metadata["key"])
    except UserError as error:
        say(f"{error}: it is made again")
        return None
    if found != key:
        say(f"{path} was made from other inputs: it is made again")
        return None
    views = [
        ViewFeatures(tensors[f"features{number}"], tensors[f"padding{number}"])
        for number in range(len(tensors) // 2)
    ]
    return SliceFeatures(series, tuple(views), tensors["base"])


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
