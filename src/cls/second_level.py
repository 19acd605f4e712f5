"""A second level: a small sequence model on the first level's slice outputs, trained with the metric.

    python -m src.cls.second_level --runs runs/cls/a runs/cls/b --data data/prepared \\
        --labels data/rsna/train.csv --folds folds/rsna2023_5fold.csv --output runs/cls/second

Features of every series come from the networks of its own fold, which were not trained on its patient. The
second level of a fold is trained on the features of the other folds and predicts this fold, as in stacking.
Its output starts at 0 and is added to the first level's. The output folder is like that of train_cls.py:
score.py and infer.py accept it.

The same command continues an interrupted run: the folder stores the features, which take longest, and every
trained fold. To train with other options on the same features, use --resume never.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from src.cls.fold_models import FIRST_LEVEL, FOLD_TABLE, SECOND_LEVEL, find_networks
from src.cls.inputs import read_tables
from src.cls.losses import StackLoss
from src.cls.model import ClassifierSpec
from src.cls.organs import Key, OrganIndex
from src.cls.out_of_fold import refuse_shared_patients, write_out_of_fold
from src.cls.second_features import (
    VERSION,
    FirstNetwork,
    SliceFeatures,
    compute_features,
    load_features,
    save_features,
)
from src.cls.second_model import SecondLevel, SecondSpec, predict_features, save_second_level
from src.cls.second_options import FREE_TO_CHANGE, SecondLevelOptions
from src.cls.stacks import open_organs
from src.cls.views import StackView
from src.core.config import parse_options, plain_options, save_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import whole_folder, write_table
from src.core.log import say
from src.core.run_folder import claim_folder, only_writer
from src.core.runtime import Runtime, torch_seed
from src.core.targets import COLUMNS, LABEL_COLUMNS
from src.data.doubtful import is_doubtful, is_trained_on, say_doubtful
from src.data.prepared import PreparedDataset, read_description
from src.nn.training import set_lr, warmup_cosine

FEATURES = "features"
"""Subfolder of the output: `fold0.safetensors` ..., the features of each fold's series."""
INPUTS = MappingProxyType(
    {
        "label_table": "other --labels",
        "fold_table": "other --folds",
        "features": "other --runs, --data, masks, --doubtful or --precision",
    }
)
"""Inputs that affect results besides the options, compared by content."""


@dataclass(frozen=True)
class FoldSource:
    """Series of a fold and the networks that compute their features."""

    fold: int
    series: pd.DataFrame
    """patient_id, series_id, fold; one row per series of the fold"""
    networks: dict[Path, FirstNetwork]
    """networks of this fold of every run, by the path of their copies in the fold's folder"""
    key: str
    """digest of everything that the features depend on"""


@dataclass(frozen=True)
class SecondInputs:
    """All inputs that are read before the first features are computed, checked for consistency."""

    prepared: PreparedDataset
    labels: pd.DataFrame
    """one row per patient, indexed by patient_id"""
    folds: pd.Series
    """fold of every labelled patient, indexed by patient_id"""
    left_out: frozenset[Key]
    """series that are predicted, but not trained on"""
    organs: OrganIndex | None
    """None if no network needs masks"""
    sources: tuple[FoldSource, ...]
    """sources in the order of the folds"""
    digests: dict[str, str]
    """digest of each of `INPUTS`"""

    @classmethod
    def read(cls, options: SecondLevelOptions, precision: str) -> "SecondInputs":
        """Read and check the inputs that the options specify.

        Args:
            precision: precision of the networks' forward passes: fp32, bf16 or fp16.

        Raises:
            UserError: runs, data, labels and folds are inconsistent, or a network was trained on a patient of
                its fold or does not record its patients.
        """
        prepared, series, labels, folds = read_tables(options.data, options.labels, options.folds)
        if series.fold.nunique() < 2:
            raise UserError(f"the series of {options.data} are of one fold: a second level needs two or more")
        is_used = is_trained_on(series, options.doubtful, options.data)
        for fold in series.fold.unique():
            if not is_used[series.fold != fold].any():
                raise UserError(
                    f"fold {fold}: all series of the other folds are doubtful; --doubtful keep trains on them"
                )
        left_out = _keys(series[~is_used])
        by_fold = {int(fold): rows.reset_index(drop=True) for fold, rows in series.groupby("fold")}
        networks = {fold: _read_networks(options.runs, fold, rows) for fold, rows in by_fold.items()}
        views = _require_one_kind(
            [[network.spec for network in found.values()] for found in networks.values()]
        )
        organs = open_organs(prepared, views, prepared.series)
        windows = read_description(prepared.folder)["windows"]
        shared = [VERSION, windows, prepared.size, prepared.slice_policy, organs and organs.digest, precision]
        sources = []
        for fold, rows in by_fold.items():
            digests = [network.digest for network in networks[fold].values()]
            key = _digest(digests, rows.to_csv(index=False), *shared)
            sources.append(FoldSource(fold, rows[["patient_id", "series_id", "fold"]], networks[fold], key))
        digests = {
            "label_table": _digest(labels.sort_index().to_csv(index=False)),
            "fold_table": _digest(folds.sort_index().to_csv()),
            "features": _digest(*(source.key for source in sources), *left_out),
        }
        return cls(prepared, labels, folds, frozenset(left_out), organs, tuple(sources), digests)


def main(argv: list[str] | None = None) -> None:
    program = "python -m src.cls.second_level"
    train_second_level(parse_options(SecondLevelOptions, argv, prog=program, description=__doc__))


def train_second_level(options: SecondLevelOptions) -> None:
    """Compute features, train and predict fold by fold, and write the tables; continue an earlier run.

    Raises:
        UserError: the inputs are inconsistent, or the output is in use or contains another run.
    """
    output = options.output
    with Runtime.create(options.precision, one_process=True) as runtime:
        inputs = SecondInputs.read(options, runtime.precision)
        say_doubtful(is_doubtful(inputs.prepared.series).sum(), options.doubtful)
        with only_writer(output):
            claim_folder(
                output,
                "second_level.json",
                {"options": plain_options(options), **inputs.digests},
                kind="a second level",
                leftovers=(".*.partial", f"{FEATURES}/.*"),
                overwrite=options.resume == "never",
                kept=(FEATURES,),
                free=FREE_TO_CHANGE,
                named=INPUTS,
            )
            save_options(options, output / "config.yaml")
            unfinished = []
            for source in inputs.sources:
                if (output / f"fold{source.fold}" / FOLD_TABLE).exists():
                    say(f"fold {source.fold} is finished: {output / f'fold{source.fold}'}")
                else:
                    unfinished.append(source)
            if unfinished:
                features = out_of_fold_features(
                    output / FEATURES, inputs, runtime, options.workers, options.cache
                )
                for source in unfinished:
                    _run_fold(options, features, inputs, source)
            write_out_of_fold(output, inputs.labels, inputs.folds)


def out_of_fold_features(
    folder: Path, inputs: SecondInputs, runtime: Runtime, workers: int = 1, cache: Path | None = None
) -> SliceFeatures:
    """Compute features of every series with the networks of its fold; `folder` keeps those of each fold.

    Args:
        cache: folder for raw copies of the slices.
    """
    parts = []
    for source in inputs.sources:
        path = folder / f"fold{source.fold}.safetensors"
        part = load_features(path, source.series, source.key)
        if part is not None:
            say(f"fold {source.fold}: features of {len(part.series)} series are read from {path}")
        else:
            networks = tuple(source.networks.values())
            part = compute_features(
                networks, inputs.prepared, inputs.organs, source.series, runtime, workers, cache
            )
            save_features(path, part, source.key)
            say(f"fold {source.fold}: {len(source.series)} series by {len(networks)} networks")
        parts.append(part)
    return SliceFeatures.join(parts)


def _run_fold(
    options: SecondLevelOptions, features: SliceFeatures, inputs: SecondInputs, source: FoldSource
) -> None:
    """Train the models of a fold and predict it; its folder appears atomically when it is complete."""
    is_held_out = (features.series.fold == source.fold).to_numpy()
    is_used = np.array([key not in inputs.left_out for key in _keys(features.series)])
    training, held_out = features.select(~is_held_out & is_used), features.select(is_held_out)
    refuse_shared_patients(training.series, held_out.series)
    spec = SecondSpec(
        features=training.widths,
        sequence=options.sequence,
        hidden=options.hidden,
        pooling=options.pooling,
        dropout=options.dropout,
    )
    models = [
        _train(options, spec, training, inputs.labels, source.fold, number) for number in range(options.seeds)
    ]
    probabilities = torch.stack([predict_features(model, held_out) for model in models]).mean(dim=0)
    predicted = pd.DataFrame(probabilities.double().numpy(), columns=list(COLUMNS))
    with whole_folder(options.output / f"fold{source.fold}") as folder:
        for place, network in source.networks.items():
            network.copy_to(folder / place)
        save_second_level(folder / SECOND_LEVEL, models, spec)
        write_table(held_out.series.join(predicted), folder / FOLD_TABLE)


def _train(
    options: SecondLevelOptions,
    spec: SecondSpec,
    training: SliceFeatures,
    labels: pd.DataFrame,
    fold: int,
    number: int,
) -> SecondLevel:
    """Train one model of a fold on the series of the others."""
    targets = torch.tensor(labels.loc[training.series.patient_id, list(LABEL_COLUMNS)].to_numpy())
    loss = StackLoss(labels.loc[training.series.patient_id.unique()], "metric")
    with torch_seed(options.seed, fold, number):
        model = SecondLevel(spec)
        model.scale_to(training.views)
        optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
        batches = -(-len(targets) // options.batch)
        total = options.epochs * batches
        model.train()
        for step in range(total):
            if step % batches == 0:
                order = torch.randperm(len(targets))
            rows = order[(step % batches) * options.batch :][: options.batch]
            set_lr(optimizer, warmup_cosine(step, total, batches, options.lr))
            logits = model([view.take(rows) for view in training.views], training.base[rows])
            value = loss(logits, targets[rows]).mean()
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    say(f"fold {fold}, second level {number + 1}/{options.seeds}: loss {value.item():.4f} at the end")
    return model.eval()


def _read_networks(runs: Sequence[Path], fold: int, series: pd.DataFrame) -> dict[Path, FirstNetwork]:
    """Read a fold's networks of all runs, by the path of their copies; none was trained on the series."""
    networks = {}
    for number, run in enumerate(runs):
        folder = run / f"fold{fold}"
        paths = find_networks(folder)
        if not paths:
            raise UserError(f"{run} has no finished fold {fold}: train_cls.py trains it")
        for path in paths:
            network = FirstNetwork.read(path)
            network.require_held_out(series["patient_id"])
            networks[Path(FIRST_LEVEL, str(number), path.relative_to(folder))] = network
    return networks


def _require_one_kind(folds: Sequence[Sequence[ClassifierSpec]]) -> list[StackView]:
    """Check that the networks of every fold compute the same features; return the views of one fold."""
    if len({tuple((spec.view, spec.columns, spec.predicts_slices) for spec in specs) for specs in folds}) > 1:
        raise UserError("the folds of the runs give other features: they are not of one run each")
    missing = sorted(set(COLUMNS) - {name for spec in folds[0] for name in spec.columns})
    if missing:
        raise UserError(f"no network of the runs predicts {missing[0]}: a second level needs all targets")
    return [spec.view for spec in folds[0]]


def _keys(series: pd.DataFrame) -> list[Key]:
    return list(zip(series["patient_id"], series["series_id"], strict=True))


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


if __name__ == "__main__":
    with exit_on_user_error():
        main()
