"""Training of one network of a fold."""

import math
from collections.abc import Iterator
from dataclasses import replace
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
from src.cls.model import ClassifierOutput, ClassifierSpec, TraumaClassifier
from src.cls.options import ClassifierOptions
from src.cls.order import RunSampler, SeriesOrder
from src.cls.stack_mixing import StackMixer
from src.cls.validation import open_cache, predict_held_out, validation_losses
from src.core.log import say
from src.core.run_folder import find_checkpoint
from src.core.runtime import Runtime, sample_rng, to_device
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
    held_out: pd.DataFrame | None = None,
) -> TraumaClassifier:
    """Train to the end of the schedule, from the folder's checkpoint if there is one.

    Args:
        model: initialised model.
        series: series to train on.
        folder: folder of checkpoints and metrics.
        held_out: series that `--validate-every` scores.

    Returns:
        The moving average of the weights (EMA): the last one, or with `--keep best` the one that scored best.

    Raises:
        UserError: the loss or a gradient is not finite; the message contains the series of the batch.
    """
    method = NetworkTraining(runtime, model, spec, options, inputs, series, folder.name, held_out)
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
        track=options.track,
    )
    loop = TrainingLoop(method, settings, runtime, folder, identity={})
    if checkpoint := find_checkpoint(folder, "auto"):
        loop.resume(checkpoint, "train_cls.py")
        say(f"{folder.name} continues after epoch {method.row(loop.step)}")
    loop.run()
    if options.keep == "best" and held_out is not None:
        method.ema.module.load_state_dict(method.best["weights"])
        say(f"{folder.name}: weights of epoch {method.best['epoch']}, score {method.best['score']:.4f}")
    return method.ema.module


class NetworkTraining(Method):
    """A classifier, the moving average (EMA) of its weights, and the loss of a batch of stacks.

    Args:
        series: series to train on.
        name: name of the fold, for messages.
        held_out: series that `--validate-every` scores; None if there are none.
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
        held_out: pd.DataFrame | None = None,
    ) -> None:
        self.runtime, self.spec, self.options, self.inputs = runtime, spec, options, inputs
        self.series, self.name, self.held_out = series, name, held_out
        self.best: dict[str, Any] = {"score": math.inf, "epoch": 0, "weights": {}}
        """lowest score of the held-out series so far, with --keep best"""
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
        epoch, options = self.row(at.step), self.options
        losses = {}
        every = options.validate_every if self.held_out is not None else 0
        if every and (epoch % every == 0 or at.is_last):
            losses = self._validate(epoch)
        score = f", held-out score {losses['val_score']:.4f}" if losses else ""
        say(f"{self.name} epoch {epoch:3d}/{options.epochs} loss {means['loss']:.4f}{score}")
        return means | {"lr": at.lr} | losses

    def _validate(self, epoch: int) -> dict[str, float]:
        """Return the losses of the held-out series, unflipped, by the averaged weights."""
        spec = replace(self.spec, flips=("none",), offsets=(0.5,))
        given = (self.runtime, self.ema.module, spec, self.inputs, self.held_out, self.options)
        losses = validation_losses(predict_held_out(*given), spec, self.inputs.labels)
        if self.options.keep == "best" and losses["val_score"] < self.best["score"]:
            weights = {name: value.clone() for name, value in self.ema.module.state_dict().items()}
            self.best = {"score": losses["val_score"], "epoch": epoch, "weights": weights}
        return losses

    def tensors(self) -> dict[str, Any]:
        saved = {
            "model": self.runtime.unwrap(self.network).state_dict(),
            "ema": self.ema.module.state_dict(),
        }
        return saved | {"best": self.best} if self.options.keep == "best" else saved

    def restore(self, saved: dict[str, Any]) -> None:
        self.runtime.unwrap(self.network).load_state_dict(saved["model"])
        self.ema.module.load_state_dict(saved["ema"])
        self.best = saved.get("best", self.best)

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


def augmentation(options: ClassifierOptions) -> Augmentation:
    """The augmentation of the options."""
    return Augmentation(
        flip=options.flip,
        rotate90=options.rotate90,
        affine=options.affine,
        gamma=options.gamma,
        dropout=options.coarse_dropout,
    )
