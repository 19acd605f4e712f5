"""One optimiser step of the two sub-networks on labelled and unlabelled slices."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from src.core.runtime import Runtime
from src.seg.dataset import SliceBatch
from src.seg.losses import (
    class_prototypes,
    label_loss,
    prototype_contrast,
    pseudo_labels,
    reliable_pixels,
    verification_loss,
)
from src.seg.model import CLASSES, EMBEDDED, Answer
from src.seg.options import SegOptions
from src.seg.state import TrainingState


class StepResult(NamedTuple):
    """What a step leaves to report; nothing in it has a graph."""

    terms: dict[str, Tensor]
    """each term as it enters the loss, its weight included"""
    monitors: dict[str, Tensor]
    """shares of pixels: in agreement, and on unlabelled slices reliable and taken for an organ"""
    is_finite: bool
    """losses and gradient are numbers, in every process alike"""
    was_skipped: bool
    """fp16's gradient scaler met an overflow and left the weights as they were"""


def take_step(state: TrainingState, batch: SliceBatch, options: SegOptions, runtime: Runtime) -> StepResult:
    """One optimiser step, then one update of the average of the weights.

    What unlabelled slices teach comes from the averaged weights, which see them unchanged, while the networks
    that learn see them with other contrast, sharpness and noise: labels of the moment are too poor to learn
    from, and a network agrees with itself too easily.

    Under torchrun each process learns from its share of the batch and gradients are averaged; Dice,
    reliability and prototypes are those of the share, while the sub-network that teaches is the same in all.
    """
    views = batch.views.to(runtime.device, non_blocking=True)  # (B, 2, H, W, C)
    labels = batch.mask.to(runtime.device, non_blocking=True).long()  # (B, H, W)
    labelled = int(batch.is_labelled.sum())
    with runtime.autocast():
        pair = state.pair(views[:, 0], views[:, 1])
    probabilities = [answer.logits.float().softmax(1) for answer in pair]
    own_errors = [label_loss(answer.logits[:labelled], labels[:labelled]) for answer in pair]
    terms = {"supervised_a": own_errors[0], "supervised_b": own_errors[1]}
    if options.verification:
        on_labelled = [each[:labelled] for each in probabilities]
        pairs = (on_labelled, on_labelled[::-1])
        errors = [verification_loss(*each, labels[:labelled], options.confidence) for each in pairs]
        terms["verification"] = options.verification * (errors[0] + errors[1])
    chosen = [each.detach().argmax(1) for each in probabilities]  # (B, H, W)
    monitors = {"agreement": (chosen[0] == chosen[1]).float().mean()}
    if options.uses_unlabelled:
        # known to all processes, so that one sub-network teaches in every share
        errors = runtime.sum(torch.stack(own_errors).detach())
        teacher = 0 if errors[0] <= errors[1] else 1
        plain = batch.plain[labelled:].to(runtime.device, non_blocking=True)
        with torch.no_grad(), runtime.autocast():
            averaged = state.ema.module.eval()(plain, plain)
        known = [answer.logits.float().softmax(1) for answer in averaged]
        more, shares = _learn_from_unlabelled(pair, known, labels[:labelled], teacher, state, options)
        terms |= more
        monitors |= shares

    loss = torch.stack(list(terms.values())).sum()
    state.optimizer.zero_grad()
    runtime.backward(loss)
    grad_norm = runtime.clip_grad_norm(state.pair.parameters(), options.clip_norm)
    state.optimizer.step()
    state.ema.update(runtime.unwrap(state.pair), step=state.step + 1)
    was_skipped = state.optimizer.step_was_skipped
    lost = ~(loss.detach().isfinite() & (grad_norm.isfinite() | was_skipped))
    return StepResult(
        terms={name: term.detach() for name, term in terms.items()},
        monitors=monitors,
        is_finite=not runtime.sum(lost.float()).item(),
        was_skipped=was_skipped,
    )


def _learn_from_unlabelled(
    pair: tuple[Answer, Answer],
    known: list[Tensor],
    labels: Tensor,
    teacher: int,
    state: TrainingState,
    options: SegOptions,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of the unlabelled slices, which stand behind the labelled ones, and what is to be watched.

    Args:
        known: probabilities (U, K, H, W) that the averaged weights of A and of B give the unlabelled slices.
        labels: int64 (L, H, W), true of the labelled slices.
        teacher: 0 or 1, the sub-network with the lower supervised loss on this batch.
    """
    labelled = len(labels)
    done = state.step / options.steps
    ramp = math.exp(-5 * (1 - min(1.0, done / options.ramp)) ** 2)
    reliable = reliable_pixels(*known, options.unreliable * (1 - done))
    terms = {}
    if options.pseudo:
        taught = pseudo_labels(known[teacher], reliable)
        student = pair[1 - teacher].logits[labelled:]
        terms["pseudo"] = options.pseudo * ramp * label_loss(student, taught)
    if options.contrast:
        # the labelled slices vouch for the prototypes, too: their classes are known
        classes = torch.cat([labels, (known[0] + known[1]).argmax(1)])[:, EMBEDDED, EMBEDDED]
        is_reliable = torch.cat([torch.ones_like(labels, dtype=torch.bool), reliable])
        is_reliable = is_reliable[:, EMBEDDED, EMBEDDED]
        contrasts = []
        for answer in pair:
            prototypes = class_prototypes(answer.embedding, classes, is_reliable, CLASSES)
            contrasts.append(
                prototype_contrast(answer.embedding, classes, ~is_reliable, prototypes, options.temperature)
            )
        terms["contrast"] = options.contrast * ramp * (contrasts[0] + contrasts[1])
    organ = (known[teacher].argmax(1) > 0).float().mean()
    return terms, {"reliable": reliable.float().mean(), "organ": organ}
