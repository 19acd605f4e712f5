"""Training of one fold: epochs, weight average, a checkpoint after each epoch, predictions of series."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from src.cls.dataset import SeriesDataset
from src.cls.losses import MetricWeightedLoss
from src.cls.model import ClassifierSpec, TraumaClassifier, predict_stack
from src.cls.options import ClassifierOptions
from src.core.checkpoint import load_checkpoint, save_checkpoint
from src.core.config import plain_options
from src.core.errors import UserError
from src.core.log import MetricsLog, progress, say
from src.core.runtime import Runtime, sample_rng, torch_seed
from src.core.targets import COLUMNS, GROUPS
from src.data.stack import PreparedDataset
from src.nn.augmentation import Augmentation
from src.nn.schedule import set_lr, warmup_cosine


@dataclass
class FoldState:
    """What training changes; all of it goes into `last.pt`."""

    model: TraumaClassifier
    ema: ModelEmaV3
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    """epochs done"""
    step: int = 0
    """optimiser steps done"""


def build_state(spec: ClassifierSpec, options: ClassifierOptions, fold: int) -> FoldState:
    """Model with start weights drawn from (seed, fold), its weight average and its optimiser."""
    with torch_seed(options.seed, fold):
        model = TraumaClassifier(spec, options.drop_path, options.pretrained)
    model = model.to(memory_format=torch.channels_last)
    groups = []
    for part, scale in (
        (model.encoder, options.encoder_lr_scale),
        (model.head, 1.0),
        (model.classifier, 1.0),
    ):
        for group in param_groups_weight_decay(part, options.weight_decay):
            groups.append({**group, "lr_scale": scale})
    return FoldState(
        model=model,
        ema=ModelEmaV3(model, decay=options.ema_decay, use_warmup=True),
        optimizer=torch.optim.AdamW(groups, lr=options.lr),
    )


def train_fold(
    runtime: Runtime,
    state: FoldState,
    spec: ClassifierSpec,
    options: ClassifierOptions,
    prepared: PreparedDataset,
    series: pd.DataFrame,
    labels: pd.DataFrame,
    folder: Path,
) -> None:
    """Train `state` on `series` to the end of the schedule, from `folder/last.pt` where there is one.

    Args:
        labels: the training patients' labels, indexed by `patient_id`.

    Raises:
        UserError: the loss is not finite; the message names the series of the batch.
    """
    log = MetricsLog(folder, drop_after=_resume(runtime, state, folder))
    ema = state.ema.to(runtime.device)
    loss_function = MetricWeightedLoss(labels, options.smoothing).to(runtime.device)
    model, optimizer = runtime.prepare(state.model, state.optimizer)
    shard = math.ceil(len(series) / runtime.world_size)
    steps_per_epoch = math.ceil(math.ceil(shard / options.batch) / options.accumulation)
    total, warmup = options.epochs * steps_per_epoch, round(options.warmup_epochs * steps_per_epoch)
    while state.epoch < options.epochs:
        order = epoch_order(len(series), options.seed, state.epoch)[runtime.rank :: runtime.world_size]
        dataset = SeriesDataset(
            prepared, series, labels, spec.slices, spec.crop, augmentation(options), options.seed, state.epoch
        )
        losses = []
        model.train()
        with torch_seed(options.seed, state.epoch, runtime.rank):  # dropout: resumed epochs draw the same
            batches = load_stacks(dataset, order, options.batch, options.workers)
            n_batches = math.ceil(len(order) / options.batch)
            for index, (images, targets) in enumerate(progress(batches, n_batches, folder.name)):
                group_start = index - index % options.accumulation
                group = min(options.accumulation, n_batches - group_start)
                steps_now = index == group_start + group - 1
                with runtime.synchronise(model, steps_now):
                    set_lr(optimizer, warmup_cosine(state.step, total, warmup, options.lr))
                    with runtime.autocast():
                        logits = model(images.to(runtime.device, non_blocking=True))
                    loss, parts = loss_function(logits, targets.to(runtime.device))
                    if not torch.isfinite(loss):
                        raise UserError(
                            _not_finite(series, order[index * options.batch :][: options.batch], folder)
                        )
                    runtime.backward(loss / group)
                losses.append(parts)
                if steps_now:
                    runtime.clip_grad_norm(model.parameters(), options.clip)
                    optimizer.step()
                    optimizer.zero_grad()
                    state.step += 1
                    ema.update(runtime.unwrap(model), step=state.step)
        state.epoch += 1
        means = torch.stack(losses).mean(dim=0).tolist()
        if runtime.is_main:
            log.log(
                state.epoch,
                loss=float(np.mean(means)),
                **dict(zip(GROUPS, means, strict=True)),
                lr=optimizer.param_groups[-1]["lr"],
            )
            _save(runtime, state, folder, options)
        say(f"{folder.name} epoch {state.epoch:3d}/{options.epochs} loss {np.mean(means):.4f}")
    log.close()


def predict_series(
    runtime: Runtime,
    model: torch.nn.Module,
    spec: ClassifierSpec,
    prepared: PreparedDataset,
    series: pd.DataFrame,
    options: ClassifierOptions,
) -> pd.DataFrame:
    """`patient_id, series_id` and the 13 probabilities of every row of `series`."""
    dataset = SeriesDataset(prepared, series, None, spec.slices, spec.crop)
    model.eval()
    predictions = []
    for images, _ in load_stacks(dataset, range(len(series)), options.batch, options.workers):
        with runtime.autocast():
            predictions.append(predict_stack(model, images.to(runtime.device), options.tta).cpu())
    table = series[["patient_id", "series_id"]].reset_index(drop=True)
    return table.join(pd.DataFrame(torch.cat(predictions).double().numpy(), columns=list(COLUMNS)))


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of the series, new each epoch and the same on every rank."""
    return sample_rng(seed, epoch, count).permutation(count)


def augmentation(options: ClassifierOptions) -> Augmentation:
    return Augmentation(
        flip=options.flip,
        rotate90=options.rotate90,
        affine=options.affine,
        gamma=options.gamma,
        dropout=options.coarse_dropout,
    )


def load_stacks(
    dataset: SeriesDataset, order: Any, batch: int, workers: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of the dataset's items in the given order."""
    return iter(
        DataLoader(
            dataset,
            batch_size=batch,
            sampler=list(order),
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread if workers else None,
        )
    )


def _one_thread(worker: int) -> None:
    """A loader worker shares the cores with the training process: one thread each is enough."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _resume(runtime: Runtime, state: FoldState, folder: Path) -> int:
    path = folder / "last.pt"
    if not path.exists():
        return 0
    saved = load_checkpoint(path)
    state.model.load_state_dict(saved["model"])
    state.ema.module.load_state_dict(saved["ema"])
    state.optimizer.load_state_dict(saved["optimizer"])
    runtime.load_scaler(saved["scaler"])
    state.epoch, state.step = saved["epoch"], saved["step"]
    say(f"{folder.name} continues after epoch {state.epoch}")
    return state.epoch


def _save(runtime: Runtime, state: FoldState, folder: Path, options: ClassifierOptions) -> None:
    save_checkpoint(
        folder / "last.pt",
        {
            "model": state.model.state_dict(),
            "ema": state.ema.module.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "scaler": runtime.scaler_state(),
            "epoch": state.epoch,
            "step": state.step,
            "options": plain_options(options),
        },
    )


def _not_finite(series: pd.DataFrame, batch: np.ndarray, folder: Path) -> str:
    rows = series.iloc[batch]
    names = ", ".join(f"{row.patient_id}/{row.series_id}" for row in rows.itertuples())
    return (
        f"{folder.name}: the loss is not finite on series {names}: lower --lr or use --precision bf16 or fp32"
    )
