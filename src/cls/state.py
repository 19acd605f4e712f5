"""What the training of a fold carries from epoch to epoch, and its checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.utils import ModelEmaV3

from src.cls.model import ClassifierSpec, TraumaClassifier
from src.cls.options import ClassifierOptions
from src.core.checkpoint import load_checkpoint, save_checkpoint
from src.core.runtime import Runtime, torch_seed
from src.core.targets import CLASS_WEIGHTS


@dataclass
class FoldState:
    """What training changes; all of it goes into `last.pt`."""

    model: TraumaClassifier
    ema: ModelEmaV3
    """the average of the weights, which is evaluated and handed on"""
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    """epochs done"""
    step: int = 0
    """optimiser steps done"""


def build_state(spec: ClassifierSpec, options: ClassifierOptions, fold: int) -> FoldState:
    """Model with start weights drawn from (seed, fold), its weight average and its optimiser."""
    with torch_seed(options.seed, fold):
        model = TraumaClassifier(spec, options.drop_path, options.pretrained, options.organ_loss > 0)
    if options.loss == "plain":  # whose best constant answer is not weighed
        weights = torch.tensor([CLASS_WEIGHTS[column] for column in spec.columns])
        model.classifier.bias.data -= weights.log()
    model = model.to(memory_format=torch.channels_last)
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
    return FoldState(
        model=model,
        ema=ModelEmaV3(model, decay=options.ema_decay, use_warmup=True),
        optimizer=torch.optim.AdamW(groups, lr=options.lr),
    )


def save_state(path: Path, state: FoldState, runtime: Runtime) -> None:
    """Write all that resuming needs: draws follow from (seed, epoch, index), so no generator's state."""
    save_checkpoint(
        path,
        {
            "model": state.model.state_dict(),
            "ema": state.ema.module.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "scaler": runtime.scaler_state(),
            "epoch": state.epoch,
            "step": state.step,
        },
    )


def restore_state(path: Path, state: FoldState, runtime: Runtime) -> None:
    """Continue from a checkpoint of the same options and data, in place.

    Raises:
        UserError: it cannot be read.
    """
    saved = load_checkpoint(path)
    state.model.load_state_dict(saved["model"])
    state.ema.module.load_state_dict(saved["ema"])
    state.optimizer.load_state_dict(saved["optimizer"])
    runtime.load_scaler(saved["scaler"])
    state.epoch, state.step = saved["epoch"], saved["step"]
