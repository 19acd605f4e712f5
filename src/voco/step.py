"""One optimiser step of pre-training, on one process or on several that share a batch."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from src.core.runtime import Runtime
from src.voco.dataset import VolumeSample
from src.voco.losses import Embeddings, GlobalBases, Objective, cosine_similarity
from src.voco.model import embed_by_both, update_teacher
from src.voco.monitors import Monitors
from src.voco.options import VocoOptions
from src.voco.state import TrainingState


class StepResult(NamedTuple):
    """What a step leaves to report; nothing in it has a graph."""

    terms: dict[str, Tensor]
    """Mean of each loss term over the volumes of this process."""
    losses: Tensor
    """(G,) loss of every volume of the global batch."""
    is_finite: bool
    """Losses and gradient are numbers, in every process alike."""
    was_skipped: bool
    """fp16's gradient scaler met an overflow and left the weights as they were."""
    similarity: Tensor
    """(B, R, N) cosine of the student's random crops to the teacher's bases."""


def take_step(
    state: TrainingState,
    batch: VolumeSample,
    patient_of: Tensor,
    objective: Objective,
    monitors: Monitors,
    options: VocoOptions,
    runtime: Runtime,
) -> StepResult:
    """One optimiser step, then one update of the teacher.

    The loss of a process is the mean over its own volumes; gradients are averaged over processes, and those
    of base crops that another process compared with come back through the gather. The result is the gradient
    of the mean over the global batch, however it is spread.

    Args:
        batch: the B volumes of this process.
        patient_of: int64, the patient's number for every series of the index.
    """
    tiles = batch.tiles.to(runtime.device, non_blocking=True)
    label = batch.label.to(runtime.device, non_blocking=True)
    crops = label.shape[1]
    with runtime.autocast():
        both = embed_by_both(state.student, state.teacher, tiles)  # (B, R + N, D) each
    student, teacher = (Embeddings.split(embeddings, crops) for embeddings in both)
    everyone = GlobalBases(
        runtime.gather(student.bases), runtime.gather(teacher.bases), first=runtime.rank * len(tiles)
    )
    terms = objective(student, teacher, label, everyone)
    patient = patient_of[batch.volume].to(runtime.device)
    monitors.update(student, teacher, label, patient, everyone.teacher, runtime.gather(patient))

    losses = torch.stack(list(terms.values())).sum(0)  # (B,)
    state.optimizer.zero_grad()
    runtime.backward(losses.mean())
    grad_norm = runtime.clip_grad_norm(state.student.parameters(), options.clip_norm)
    state.optimizer.step()
    update_teacher(state.teacher, runtime.unwrap(state.student), teacher_momentum(state.step, options))
    all_losses = runtime.gather(losses.detach())
    # an fp16 overflow is no failure: the gradient scaler skips the step and lowers its scale
    was_skipped = state.optimizer.step_was_skipped
    is_finite = all_losses.isfinite().all() & (grad_norm.isfinite() | was_skipped)
    return StepResult(
        terms={name: term.detach().mean() for name, term in terms.items()},
        losses=all_losses,
        is_finite=bool(is_finite),
        was_skipped=was_skipped,
        similarity=cosine_similarity(student.randoms.detach(), teacher.bases),
    )


def teacher_momentum(step: int, options: VocoOptions) -> float:
    """Momentum of the teacher's average at a step: from `momentum` to `final_momentum` by half a cosine."""
    if options.final_momentum is None:
        return options.momentum
    left = 0.5 * (1 + math.cos(math.pi * step / options.steps))
    return options.final_momentum - (options.final_momentum - options.momentum) * left
