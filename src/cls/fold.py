"""Training of one fold, epoch by epoch, and the prediction of series."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from src.cls.dataset import SeriesDataset
from src.cls.losses import MetricWeightedLoss
from src.cls.model import ClassifierSpec, predict_stack
from src.cls.options import ClassifierOptions
from src.cls.state import FoldState, restore_state, save_state
from src.core.errors import UserError
from src.core.log import MetricsLog, progress, say
from src.core.runtime import Runtime, sample_rng, torch_seed
from src.core.targets import COLUMNS, GROUPS
from src.data.stack import PreparedDataset
from src.nn.augmentation import Augmentation
from src.nn.loading import StackLoader
from src.nn.schedule import set_lr, warmup_cosine


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
    checkpoint = folder / "last.pt"
    if checkpoint.exists():
        restore_state(checkpoint, state, runtime)
        say(f"{folder.name} continues after epoch {state.epoch}")
    log = MetricsLog(folder, drop_after=state.epoch)
    state.ema.to(runtime.device)
    loss_function = MetricWeightedLoss(labels, options.smoothing).to(runtime.device)
    model, optimizer = runtime.prepare(state.model, state.optimizer)
    batches_per_epoch = math.ceil(len(series) / options.batch)
    steps_per_epoch = math.ceil(batches_per_epoch / options.accumulation)
    total, warmup = options.epochs * steps_per_epoch, round(options.warmup_epochs * steps_per_epoch)
    while state.epoch < options.epochs:
        dataset = SeriesDataset(
            prepared, series, labels, spec.slices, spec.crop, augmentation(options), options.seed, state.epoch
        )
        order = epoch_order(len(series), options.seed, state.epoch)
        batches = StackLoader(dataset, options.workers, sampler=order.tolist(), batch_size=options.batch)
        losses = []
        model.train()
        with torch_seed(options.seed, state.epoch):  # dropout: a resumed epoch draws the same
            for index, (images, targets) in enumerate(progress(batches, batches_per_epoch, folder.name)):
                group_start = index - index % options.accumulation
                group = min(options.accumulation, batches_per_epoch - group_start)
                set_lr(optimizer, warmup_cosine(state.step, total, warmup, options.lr))
                with runtime.autocast():
                    logits = model(images.to(runtime.device, non_blocking=True))
                loss, parts = loss_function(logits, targets.to(runtime.device))
                if not torch.isfinite(loss):
                    batch = order[index * options.batch :][: options.batch]
                    raise UserError(f"{folder.name}: {_describe_failure(series.iloc[batch])}")
                runtime.backward(loss / group)
                losses.append(parts)
                if index == group_start + group - 1:
                    runtime.clip_grad_norm(model.parameters(), options.clip)
                    optimizer.step()
                    optimizer.zero_grad()
                    state.step += 1
                    state.ema.update(runtime.unwrap(model), step=state.step)
        state.epoch += 1
        means = torch.stack(losses).mean(dim=0).tolist()
        figures = {"loss": float(np.mean(means)), **dict(zip(GROUPS, means, strict=True))}
        log.log(state.epoch, **figures, lr=optimizer.param_groups[-1]["lr"])
        save_state(checkpoint, state, runtime)
        say(f"{folder.name} epoch {state.epoch:3d}/{options.epochs} loss {figures['loss']:.4f}")
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
    for images, _ in StackLoader(dataset, options.workers, batch_size=options.batch):
        with runtime.autocast():
            predictions.append(predict_stack(model, images.to(runtime.device), spec.tta).cpu())
    table = series[["patient_id", "series_id"]].reset_index(drop=True)
    return table.join(pd.DataFrame(torch.cat(predictions).double().numpy(), columns=list(COLUMNS)))


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of the series, new each epoch."""
    return sample_rng(seed, epoch, count).permutation(count)


def augmentation(options: ClassifierOptions) -> Augmentation:
    """The augmentation that the options ask for."""
    return Augmentation(
        flip=options.flip,
        rotate90=options.rotate90,
        affine=options.affine,
        gamma=options.gamma,
        dropout=options.coarse_dropout,
    )


def _describe_failure(rows: pd.DataFrame) -> str:
    names = ", ".join(f"{row.patient_id}/{row.series_id}" for row in rows.itertuples())
    return f"the loss is not finite on series {names}: lower --lr, or use --precision bf16 or fp32"
