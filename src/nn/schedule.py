"""Length of a training in steps and batches, and its learning rate at each step."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from src.core.config import Tracking


@dataclass(frozen=True)
class LoopSettings:
    """Length of a training, and intervals of logging and saving."""

    steps: int
    """optimiser steps of the run, at the end of which the learning rate is 0"""
    warmup_steps: int
    lr: float
    clip_norm: float
    seed: int
    log_every: int
    """batches between two rows of metrics.csv"""
    save_every: int
    """batches between two checkpoints, a multiple of `log_every`"""
    accumulation: int = 1
    """batches per optimiser step"""
    epoch_batches: int = 1
    """batches per epoch, whose last step may have fewer; only needed for accumulation"""
    track: Tracking = "none"
    """where metrics are sent besides metrics.csv and TensorBoard events"""

    @classmethod
    def of(cls, options: Any) -> "LoopSettings":
        """Make settings from options that count in steps: those of train_voco.py and train_seg.py."""
        return cls(
            steps=options.steps,
            warmup_steps=round(options.warmup * options.steps),
            lr=options.lr,
            clip_norm=options.clip_norm,
            seed=options.seed,
            log_every=options.log_every,
            save_every=options.save_every,
            track=options.track,
        )

    @property
    def batches(self) -> int:
        """Number of batches of the run."""
        return self.first_batch(self.steps)

    def first_batch(self, step: int) -> int:
        """Return the first batch of an optimiser step; steps are saved at the ends of epochs."""
        if self.accumulation == 1:
            return step
        epoch_steps = -(-self.epoch_batches // self.accumulation)
        epoch, inside = divmod(step, epoch_steps)
        return epoch * self.epoch_batches + inside * self.accumulation

    def step_of(self, batch: int) -> int:
        """Return the optimiser step, from 1, that a batch belongs to."""
        if self.accumulation == 1:
            return batch + 1
        epoch, inside = divmod(batch, self.epoch_batches)
        return epoch * -(-self.epoch_batches // self.accumulation) + inside // self.accumulation + 1

    def group(self, batch: int) -> tuple[int, bool, bool]:
        """Return how many batches share a batch's optimiser step, and whether it is the first or last one."""
        if self.accumulation == 1:
            return 1, True, True
        inside = batch % self.epoch_batches
        first = inside - inside % self.accumulation
        size = min(self.accumulation, self.epoch_batches - first)
        return size, inside == first, inside == first + size - 1


def warmup_cosine(
    step: int, total_steps: int, warmup_steps: int, base_lr: float, final_lr: float = 0.0
) -> float:
    """Increase linearly to `base_lr` over `warmup_steps`, then decay by half a cosine to `final_lr`.

    Args:
        step: index of the optimiser step, from 0.
        total_steps: steps of the whole run; later steps keep `final_lr`.
    """
    if step < warmup_steps:
        return base_lr * (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final_lr + (base_lr - final_lr) * 0.5 * (1.0 + math.cos(math.pi * done))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group to `lr` times its `lr_scale` (default 1)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
