"""One optimiser step of the two sub-networks on labelled and unlabelled slices."""

from typing import NamedTuple

import torch
from torch import Tensor

from src.core.runtime import Runtime
from src.seg.dataset import SliceBatch
from src.seg.losses import label_loss, verification_loss
from src.seg.options import SegOptions
from src.seg.state import TrainingState
from src.seg.unlabelled import MixedBatch, mix_unlabelled, unlabelled_terms


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

    Under torchrun each process learns from its share of the batch and gradients are averaged; Dice,
    reliability and prototypes are those of the share, while the sub-network that teaches is the same in all.
    """
    strong = batch.strong.to(runtime.device, non_blocking=True)  # (B, 2, H, W, C)
    labelled = int(batch.is_labelled.sum())
    labels = batch.mask[:labelled].to(runtime.device, non_blocking=True).long()  # (L, H, W)
    mixed: MixedBatch | None = None
    if options.uses_unlabelled:
        weak = batch.weak[labelled:].to(runtime.device, non_blocking=True)  # (U, H, W, C)
        with runtime.autocast():
            mixed = mix_unlabelled(state.ema.module, strong, weak, labels, options.mix)
        strong = mixed.strong
    with runtime.autocast():
        pair = state.pair(strong[:, 0], strong[:, 1])

    own_errors = [label_loss(answer.logits[:labelled], labels) for answer in pair]
    terms = {"supervised_a": own_errors[0], "supervised_b": own_errors[1]}
    if options.verification:
        a, b = (answer.logits[:labelled].float().softmax(1) for answer in pair)
        errors = [verification_loss(*each, labels, options.confidence) for each in ((a, b), (b, a))]
        terms["verification"] = options.verification * (errors[0] + errors[1])
    chosen = [answer.logits.detach().argmax(1) for answer in pair]  # (B, H, W)
    monitors = {"agreement": (chosen[0] == chosen[1]).float().mean()}
    if mixed is not None:
        # known to all processes, so that one sub-network teaches in every share
        errors = runtime.sum(torch.stack(own_errors).detach())
        teaching = 0 if errors[0] <= errors[1] else 1
        more, shares = unlabelled_terms(pair, mixed, labels, teaching, state.step, options)
        terms |= more
        monitors |= shares

    loss = torch.stack(list(terms.values())).sum()
    state.optimizer.zero_grad()
    runtime.backward(loss)
    grad_norm = runtime.clip_grad_norm(state.pair.parameters(), options.clip_norm)
    state.optimizer.step()
    runtime.share_buffers(runtime.unwrap(state.pair))  # else each process would have an average of its own
    state.ema.update(runtime.unwrap(state.pair), step=state.step + 1)
    was_skipped = state.optimizer.step_was_skipped
    lost = ~(loss.detach().isfinite() & (grad_norm.isfinite() | was_skipped))
    return StepResult(
        terms={name: term.detach() for name, term in terms.items()},
        monitors=monitors,
        is_finite=not runtime.sum(lost.float()).item(),
        was_skipped=was_skipped,
    )
