"""Training of one network of a fold, and prediction of series."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor

from src.cls.dataset import StackBatch, StackDataset
from src.cls.inputs import TrainingInputs
from src.cls.losses import StackLoss, organ_loss, slice_loss
from src.cls.model import ClassifierOutput, ClassifierSpec, TraumaClassifier, predict_stack
from src.cls.options import ClassifierOptions
from src.cls.order import RunSampler, SeriesOrder
from src.cls.stack_mixing import StackMixer
from src.core.log import say
from src.core.run_folder import find_checkpoint
from src.core.runtime import Runtime, sample_rng, to_device
from src.data.packed import PackedSlices
from src.nn.augmentation import Augmentation
from src.nn.execution import StaticNetwork, set_execution
from src.nn.loading import StackLoader
from src.nn.micro_batch import smallest_part
from src.nn.schedule import LoopSettings
from src.nn.training import LossAndMetrics, Method, Progress, TrainingLoop


def train_network(
    runtime: Runtime,
    model: TraumaClassifier,
    spec: ClassifierSpec,
    options: ClassifierOptions,
    inputs: TrainingInputs,
    series: pd.DataFrame,
    folder: Path,
) -> TraumaClassifier:
    """Train to the end of the schedule, from the folder's checkpoint if there is one.

    Args:
        model: initialised model.
        series: series to train on.
        folder: folder of checkpoints and metrics.

    Returns:
        The moving average of the weights (EMA).

    Raises:
        UserError: the loss or a gradient is not finite; the message contains the series of the batch.
    """
    method = NetworkTraining(runtime, model, spec, options, inputs, series, folder.name)
    batches = method.order.batches
    steps_per_epoch = -(-batches // options.accumulation)
    settings = LoopSettings(
        steps=options.epochs * steps_per_epoch,
        warmup_steps=round(options.warmup_epochs * steps_per_epoch),
        lr=options.lr,
        clip_norm=options.clip,
        seed=options.seed,
        log_every=batches,
        save_every=batches,
        accumulation=options.accumulation,
        epoch_batches=batches,
    )
    loop = TrainingLoop(method, settings, runtime, folder, identity={})
    if checkpoint := find_checkpoint(folder, "auto"):
        loop.resume(checkpoint, "train_cls.py")
        say(f"{folder.name} continues after epoch {method.row(loop.step)}")
    loop.run()
    return method.ema.module


class NetworkTraining(Method):
    """A classifier, the moving average (EMA) of its weights, and the loss of a batch of stacks.

    Args:
        series: series to train on.
        name: name of the fold, for messages.
    """

    failure_advice = (
        "start from scratch with a lower --lr, or with --precision bf16 or fp32, and --resume never"
    )

    def __init__(
        self,
        runtime: Runtime,
        model: TraumaClassifier,
        spec: ClassifierSpec,
        options: ClassifierOptions,
        inputs: TrainingInputs,
        series: pd.DataFrame,
        name: str,
    ) -> None:
        self.runtime, self.spec, self.options, self.inputs = runtime, spec, options, inputs
        self.series, self.name = series, name
        patients = set(series["patient_id"])
        self.labels = inputs.labels[inputs.labels["patient_id"].isin(patients)]
        self.order = SeriesOrder(
            series,
            self.labels,
            options.batch,
            options.class_balance,
            self.spec.injuries,
            options.seed,
            runtime.world,
        )
        self.importance = torch.from_numpy(self.order.importance).float()
        self.mixer = StackMixer(options.mixup, options.cutmix)
        self.loss = StackLoss(self.labels, options.loss, options.smoothing, self.spec.targets)
        self.loss.to(runtime.device)
        self.ema = ModelEmaV3(model, decay=options.ema_decay, use_warmup=True)
        """moving average of the weights, which is evaluated and saved"""
        self.ema.to(runtime.device)
        self.optimizer = build_optimizer(model, options)
        self.network: torch.nn.Module = runtime.share_batch_statistics(model)
        self.network.train()
        self.dataset = StackDataset(
            inputs.prepared,
            series,
            spec.view,
            inputs.organs,
            labels=self.labels,
            slice_targets=inputs.slice_targets if options.slice_loss else None,
            with_organs=options.organ_loss > 0,
            augmentation=augmentation(options),
            packed=open_cache(options, spec, self.inputs),
            seed=options.seed,
        )
        self._draws_of = lru_cache(maxsize=1)(lambda epoch: self.order.share(epoch, runtime.rank))

    @property
    def memory_advice(self) -> str:
        options, encoder = self.options, self.runtime.unwrap(self.network).encoder
        smaller = ["--slices or --crop"]
        if options.batch > self.runtime.world:
            smaller.insert(0, "--batch (--accumulation keeps the batch of a step)")
        if options.organ_loss and options.organ_slices > 1:
            smaller.insert(0, "--organ-slices")
        advice = f"start from scratch with a lower {', '.join(smaller)}, and --resume never"
        if not options.micro_batch:
            return f"go on with --micro-batch (slices at a time), or {advice}"
        can_be_lower = options.micro_batch > smallest_part(encoder)
        return f"go on with a lower --micro-batch, or {advice}" if can_be_lower else advice

    def read(self, first_batch: int) -> Iterator[StackBatch]:
        options = self.options
        epochs = range(first_batch // self.order.batches, options.epochs)
        sampler = RunSampler(self.order, epochs, self.runtime.rank)
        return iter(StackLoader(self.dataset, options.workers, batch_sampler=sampler))

    def seed_parts(self, number: int) -> tuple[int, ...]:
        return divmod(number, self.order.batches)  # epoch, batch of the epoch

    def compute_loss(self, batch: StackBatch, number: int, step: int) -> LossAndMetrics:
        """Return the loss of the stacks, and those of slices and organs if they are trained."""
        epoch, index = self.seed_parts(number)
        chosen = self._draws_of(epoch)[index]
        options, device = self.options, self.runtime.device
        rng = sample_rng(options.seed, epoch, index * self.runtime.world + self.runtime.rank)
        importance = to_device(self.importance[self.order.series_of(chosen)], device)
        batch = StackBatch(*(part.to(device, non_blocking=True) for part in batch))
        batch, importance = self.mixer(batch, importance, rng)
        decoded = choose_slices_to_decode(batch, options.organ_slices, rng) if options.organ_loss else None
        padding = batch.padding if self.spec.view.is_padded else None
        with self.runtime.autocast():
            output: ClassifierOutput = self.network(batch.images, padding, decoded, options.micro_batch)
        losses = self.loss(output.logits, batch.targets, importance)
        names = [*self.spec.targets, "any_injury"][: len(losses)]
        metrics = {"loss": losses.mean(), **dict(zip(names, losses, strict=True))}
        if output.slice_logits is not None:
            metrics["slices"] = slice_loss(output.slice_logits, batch.slice_targets, self.spec.injuries)
            metrics["loss"] = metrics["loss"] + options.slice_loss * metrics["slices"]
        if decoded is not None:
            decoded = to_device(decoded, device)
            maps = batch.organs.flatten(0, 1)[decoded]
            is_known = (batch.has_organs[:, None] & ~batch.padding).flatten()[decoded]
            metrics["organs"] = organ_loss(output.organ_logits, maps, is_known)
            metrics["loss"] = metrics["loss"] + options.organ_loss * metrics["organs"]
        return LossAndMetrics(metrics["loss"], {name: value.detach() for name, value in metrics.items()})

    def before_first_step(self) -> None:
        options, view = self.options, self.spec.view
        obstacle = None
        if options.micro_batch:
            obstacle = "--micro-batch encodes in parts"
        elif options.accumulation > 1:
            obstacle = "a graph overwrites the gradients that --accumulation adds up"
        elif options.organ_loss:
            obstacle = "the decoder of --organ-loss takes maps from inside the encoder"
        slices = options.batch // self.runtime.world * view.slices
        shape = (slices, view.channels, view.crop, view.crop)
        encoder = self.runtime.unwrap(self.network).encoder
        part = StaticNetwork(encoder, shape, memory_format=torch.channels_last)
        set_execution(options.execution, [part], self.runtime, obstacle)

    def row(self, step: int) -> int:
        """Return the row number: rows are numbered by epoch."""
        return step // -(-self.order.batches // self.options.accumulation)

    def after_step(self, step: int) -> None:
        self.ema.update(self.runtime.unwrap(self.network), step=step)

    def report(self, at: Progress, means: dict[str, float]) -> dict[str, float]:
        epoch = self.row(at.step)
        say(f"{self.name} epoch {epoch:3d}/{self.options.epochs} loss {means['loss']:.4f}")
        return means | {"lr": at.lr}

    def tensors(self) -> dict[str, Any]:
        return {
            "model": self.runtime.unwrap(self.network).state_dict(),
            "ema": self.ema.module.state_dict(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        self.runtime.unwrap(self.network).load_state_dict(saved["model"])
        self.ema.module.load_state_dict(saved["ema"])

    def name_series(self, number: int) -> str:
        epoch, index = self.seed_parts(number)
        rows = self.series.iloc[self.order.series_of(self.order.epoch(epoch)[index])]
        return ", ".join(dict.fromkeys(f"{row.patient_id}/{row.series_id}" for row in rows.itertuples()))


def build_optimizer(model: TraumaClassifier, options: ClassifierOptions) -> torch.optim.Optimizer:
    """Build AdamW; the encoder's learning rate may be scaled, as a whole and per layer."""
    if options.layer_decay < 1:
        groups = param_groups_layer_decay(
            model.encoder, options.weight_decay, layer_decay=options.layer_decay
        )
    else:
        groups = param_groups_weight_decay(model.encoder, options.weight_decay)
    groups = [
        {**group, "lr_scale": group.get("lr_scale", 1.0) * options.encoder_lr_scale} for group in groups
    ]
    for part in (model.head, model.classifier, model.slice_classifier, model.decoder):
        if part is not None:
            groups += param_groups_weight_decay(part, options.weight_decay)
    return torch.optim.AdamW(groups, lr=options.lr, fused=True)


def choose_slices_to_decode(batch: StackBatch, count: int, rng: np.random.Generator) -> Tensor:
    """Return increasing indices into B * T of `count` slices of each stack, int64 on the CPU."""
    stacks, slices = batch.images.shape[:2]
    places = [
        stack * slices + np.sort(rng.choice(slices, min(count, slices), replace=False))
        for stack in range(stacks)
    ]
    return torch.from_numpy(np.concatenate(places))


def predict_held_out(
    runtime: Runtime,
    model: torch.nn.Module,
    spec: ClassifierSpec,
    inputs: TrainingInputs,
    series: pd.DataFrame,
    options: ClassifierOptions,
) -> pd.DataFrame:
    """Return `patient_id, series_id` and probabilities of the network's columns, one row per series.

    Under torchrun each process predicts a part of the series, and all processes get all rows.
    """
    model.eval()
    share = series.iloc[runtime.rank :: runtime.world]
    total = 0.0
    packed = open_cache(options, spec, inputs)
    for offset in spec.offsets:
        dataset = StackDataset(inputs.prepared, share, spec.view, inputs.organs, packed=packed, offset=offset)
        batches = []
        for batch in StackLoader(dataset, options.workers, batch_size=options.batch):
            images, padding = (part.to(runtime.device) for part in (batch.images, batch.padding))
            with runtime.autocast():
                batches.append(predict_stack(model, spec, images, padding, spec.flips).cpu())
        total = total + torch.cat(batches).double().numpy() if batches else total
    rows = []
    if len(share):
        table = share[["patient_id", "series_id"]].reset_index(drop=True)
        values = pd.DataFrame(total / len(spec.offsets), columns=list(spec.columns))
        rows = table.join(values).to_dict("records")
    predicted = pd.DataFrame(runtime.gather_rows(rows))
    return series[["patient_id", "series_id"]].merge(predicted, validate="1:1")


def open_cache(
    options: ClassifierOptions, spec: ClassifierSpec, inputs: TrainingInputs
) -> PackedSlices | None:
    """Open the cache of raw slices, if the options specify one."""
    if options.cache is None:
        return None
    return PackedSlices(inputs.prepared, spec.view.windows, options.cache)


def augmentation(options: ClassifierOptions) -> Augmentation:
    """The augmentation of the options."""
    return Augmentation(
        flip=options.flip,
        rotate90=options.rotate90,
        affine=options.affine,
        gamma=options.gamma,
        dropout=options.coarse_dropout,
    )
