"""The pre-training run: data, steps, log lines and checkpoints."""

import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from src.core.config import save_options
from src.core.errors import UserError
from src.core.files import write_table
from src.core.log import MetricsLog, say, warn
from src.core.runtime import Runtime, torch_seed
from src.data.stack import PreparedDataset
from src.nn.loading import StackLoader
from src.nn.schedule import set_lr, warmup_cosine
from src.voco.crops import CropGrid
from src.voco.dataset import VocoDataset, VolumeOrder, VolumeSample
from src.voco.losses import VocoLosses, voco_losses
from src.voco.model import teacher_distance, update_teacher
from src.voco.monitors import COLLAPSE_STD, Monitors
from src.voco.options import VocoOptions
from src.voco.state import (
    TrainingState,
    build_state,
    export_encoder,
    find_checkpoint,
    restore_state,
    run_identity,
    save_state,
)


def pretrain(options: VocoOptions) -> Path:
    """Pre-train as `options` say, from the start or from a checkpoint, and export the encoder.

    Returns:
        The path of `encoder.safetensors`.

    Raises:
        UserError: data that cannot be used, a checkpoint of another run, or a loss that is no longer a
        number.
    """
    output = Path(options.output)
    dataset = VocoDataset(
        [PreparedDataset.open(folder) for folder in options.data],
        windows=options.windows,
        grid=CropGrid((options.canvas,) * 2, (options.grid,) * 2),
        random_crops=options.random_crops,
        slab_slices=options.slab_slices,
        slices=options.slices,
        seed=options.seed,
    )
    runtime = Runtime.create(options.precision)
    state = build_state(options)
    state.teacher.to(runtime.device)
    state.student, state.optimizer = runtime.prepare(state.student, state.optimizer)
    checkpoint = find_checkpoint(options)
    if checkpoint:
        restore_state(checkpoint, state, runtime, run_identity(options, dataset.volumes))
    order = VolumeOrder(
        len(dataset), options.batch, seed=options.seed, first_step=state.step, steps=options.steps
    )

    patients = dataset.volumes["patient_id"].drop_duplicates().tolist()
    say(f"{len(dataset)} series of {len(patients)} patients, {options.backbone} on {runtime.device}")
    if checkpoint:
        say(f"continuing {checkpoint} after step {state.step} of {options.steps}")
    save_options(options, output / "config.yaml")
    write_table(dataset.volumes[["patient_id", "series_id"]], output / "patients.csv")
    with closing(MetricsLog(output, drop_after=state.step)) as metrics:
        batches = StackLoader(dataset, options.workers, batch_sampler=order)
        train(state, batches, dataset.volumes, options, runtime, metrics)
    encoder_path = output / "encoder.safetensors"
    export_encoder(encoder_path, state.teacher, options, patients)
    say(f"wrote {encoder_path}")
    return encoder_path


def train(
    state: TrainingState,
    batches: Iterable[VolumeSample],
    volumes: pd.DataFrame,
    options: VocoOptions,
    runtime: Runtime,
    metrics: MetricsLog,
) -> None:
    """Run the steps that `batches` holds, logging and saving on the way; `volumes` is `volume_table`.

    Raises:
        UserError: a loss or the gradient is not finite; the message names the step and the series of the
        batch.
    """
    identity = run_identity(options, volumes)
    patient_of = torch.tensor(volumes.groupby(["set", "patient_id"]).ngroup().tolist())
    monitors, sums, collapsed = Monitors(), 0.0, False
    since, started = state.step, time.perf_counter()
    warmup_steps = round(options.warmup * options.steps)
    for batch in batches:
        lr = warmup_cosine(state.step, options.steps, warmup_steps, options.lr)
        set_lr(state.optimizer, lr)
        with torch_seed(options.seed, state.step):  # dropout and stochastic depth
            losses, is_finite = take_step(state, batch, patient_of, monitors, options, runtime)
        state.step += 1
        if not is_finite:
            raise UserError(_describe_failure(state.step, losses, batch, volumes))
        sums = sums + torch.stack(losses)
        is_last = state.step == options.steps
        if state.step % options.log_every and not is_last:
            continue

        steps, seconds = state.step - since, time.perf_counter() - started
        figures = _name_losses(sums / steps) | monitors.read()
        figures["teacher_distance"] = teacher_distance(state.teacher, runtime.unwrap(state.student))
        figures |= {"lr": lr, "slices_per_s": steps * options.batch * options.slices / seconds}
        metrics.log(state.step, **figures)
        say(_log_line(state.step, options.steps, figures))
        if figures["embedding_std"] < COLLAPSE_STD and not collapsed:
            warn(
                f"step {state.step}: every crop gets nearly the same embedding (embedding_std "
                f"{figures['embedding_std']:.4f}); lower --lr, or raise --momentum or --batch"
            )
        collapsed = figures["embedding_std"] < COLLAPSE_STD
        if state.step % options.save_every == 0 or is_last:
            save_state(Path(options.output) / "last.pt", state, runtime, identity)
        sums, since, started = 0.0, state.step, time.perf_counter()


def take_step(
    state: TrainingState,
    batch: VolumeSample,
    patient_of: Tensor,
    monitors: Monitors,
    options: VocoOptions,
    runtime: Runtime,
) -> tuple[VocoLosses, bool]:
    """One optimiser step, then one update of the teacher.

    Args:
        batch: B volumes.
        patient_of: int64, the patient's number for every volume of the index.

    Returns:
        The mean of each loss term over the batch, and whether losses and gradient are finite.
    """
    tiles = batch.tiles.to(runtime.device, non_blocking=True)
    label = batch.label.to(runtime.device, non_blocking=True)
    with runtime.autocast():
        student = state.student(tiles)  # (B, R + N, D)
        with torch.no_grad():
            teacher = state.teacher(tiles)
    losses = voco_losses(student, teacher, label)
    monitors.update(student, teacher, label, patient_of[batch.volume].to(runtime.device))

    total = losses.total.mean()
    state.optimizer.zero_grad()
    runtime.backward(total)
    grad_norm = runtime.clip_grad_norm(state.student.parameters(), options.clip_norm)
    state.optimizer.step()
    update_teacher(state.teacher, runtime.unwrap(state.student), options.momentum)
    # an fp16 overflow is no failure: the gradient scaler skips the step and lowers its scale
    is_finite = bool(total.isfinite() & (grad_norm.isfinite() | state.optimizer.step_was_skipped))
    return VocoLosses(*(term.detach().mean() for term in losses)), is_finite


def _name_losses(means: Tensor) -> dict[str, float]:
    terms = dict(zip(VocoLosses._fields, means.tolist(), strict=True))
    return {"loss": sum(terms.values())} | {f"loss_{name}": value for name, value in terms.items()}


def _log_line(step: int, steps: int, figures: dict[str, float]) -> str:
    template = (
        "step {step}/{steps}  loss {loss:.3f} (intra {loss_positive:.3f} + {loss_negative:.3f}, "
        "inter {loss_inter_positive:.3f} + {loss_inter_negative:.3f}, bases {loss_regulariser:.3f})  "
        "lr {lr:.1e}  placing: cross {cross_placing:.2f} [{cross_low:.2f}, {cross_high:.2f}] "
        "of {cross_trials:.0f}, intra {intra_placing:.2f} of {intra_trials:.0f}  "
        "similarity {positive_similarity:.2f} / {negative_similarity:.2f}  std {embedding_std:.2f}  "
        "teacher {teacher_distance:.1e}  {slices_per_s:.0f} slices/s"
    )
    # figures without trials, such as cross placing among series of one patient, show as nan
    return template.format_map(defaultdict(lambda: float("nan"), figures, step=step, steps=steps))


def _describe_failure(step: int, losses: VocoLosses, batch: VolumeSample, volumes: pd.DataFrame) -> str:
    rows = volumes.iloc[batch.volume.tolist()]
    series = ", ".join(f"{row.patient_id}/{row.series_id}" for row in rows.itertuples())
    terms = ", ".join(f"{name} {value.item():.3g}" for name, value in losses._asdict().items())
    return (
        f"step {step}: loss or gradient is not finite ({terms}) for series {series}; "
        "the last checkpoint is kept: lower --lr, or use --precision fp32"
    )
