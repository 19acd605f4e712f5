"""What a run carries from step to step, its checkpoint, and the encoder it hands to other stages."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from src.core.checkpoint import clear_run, read_own_checkpoint, save_checkpoint
from src.core.config import plain_options
from src.core.runtime import Runtime, torch_seed
from src.nn.encoder import EncoderFile, save_encoder
from src.nn.first_weights import patients_seen_by
from src.voco.model import TeacherHead, VocoNet, build_network, make_teacher
from src.voco.options import VocoOptions

FREE_TO_CHANGE = (
    *("data", "output", "resume", "workers", "precision", "micro_batch"),
    *("log_every", "save_every", "keep_every", "picture_every"),
)
"""Options that a resumed run may change: data are known by their series, not path; precision and parts change
the rounding (and batch statistics), which a run that has met its limits must be free to do."""


@dataclass
class TrainingState:
    """What an optimiser step changes; `student` and `optimizer` may be wrapped by `Runtime.prepare`."""

    student: torch.nn.Module
    teacher: VocoNet | TeacherHead
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    """Time that the steps took so far, those before a resumption included."""
    seen_before: tuple[str, ...] = ()
    """Patients whom the first weights (--encoder) were trained on."""


def build_state(options: VocoOptions, runtime: Runtime) -> TrainingState:
    """Student, teacher and optimiser before the first step; the initial weights follow from the seed.

    Raises:
        UserError: there is no such backbone, or first weights that do not fit it.
    """
    with torch_seed(options.seed):
        student = runtime.share_batch_statistics(build_network(options))
    student.train()
    optimizer = torch.optim.AdamW(
        student.parameters(),
        lr=options.lr,
        weight_decay=options.weight_decay,
        amsgrad=True,
        fused=runtime.device.type == "cpu" or None,  # a quarter of the time there; on GPUs torch's choice
    )
    seen_before = patients_seen_by(options.encoder) if options.encoder else ()
    teacher = make_teacher(student, options.shared_backbone)
    return TrainingState(student, teacher, optimizer, seen_before=seen_before)


def run_identity(options: VocoOptions, series: pd.DataFrame) -> dict[str, Any]:
    """What must be equal for a run to continue a checkpoint: the options, and the series in their order."""
    ids = "\n".join(series["set"].astype(str) + "/" + series["patient_id"] + "/" + series["series_id"])
    return {"options": plain_options(options), "series": hashlib.sha256(ids.encode()).hexdigest()}


def clear_folder(options: VocoOptions) -> None:
    """Delete what an earlier run left in the folder of this one."""
    clear_run(Path(options.output), ("encoder*.safetensors", "pictures/step_*.png"), keep=options.encoder)


def save_state(path: Path, state: TrainingState, runtime: Runtime, identity: dict[str, Any]) -> None:
    """Write all that resuming needs; draws follow from (seed, epoch, volume) and (seed, step), so no
    generator's."""
    content = {
        "step": state.step,
        "seconds": state.seconds,
        "seen_before": list(state.seen_before),
        "student": runtime.unwrap(state.student).state_dict(),
        "teacher": state.teacher.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": runtime.scaler_state(),
    }
    save_checkpoint(path, content | identity)


def restore_state(path: Path, state: TrainingState, runtime: Runtime, identity: dict[str, Any]) -> None:
    """Continue from a checkpoint, in place.

    Raises:
        UserError: it cannot be read, is not one of pre-training, or belongs to other options or other series.
    """
    keys = {"step", "seconds", "seen_before", "student", "teacher", "optimizer", "scaler"}
    saved = read_own_checkpoint(path, "train_voco.py", keys, identity, FREE_TO_CHANGE)
    runtime.unwrap(state.student).load_state_dict(saved["student"])
    state.teacher.load_state_dict(saved["teacher"])
    state.optimizer.load_state_dict(saved["optimizer"])
    runtime.load_scaler(saved["scaler"])
    state.step, state.seconds = saved["step"], saved["seconds"]
    state.seen_before = tuple(saved["seen_before"])


def export_encoder(
    path: Path, state: TrainingState, runtime: Runtime, options: VocoOptions, patients: Sequence[str]
) -> None:
    """Write the backbone with how it was trained and on whom.

    The teacher's rather than the student's: its weights and running statistics average the last steps, so
    they do not hang on the noise of a single batch, and it is the network whose placing the monitors
    measured. Where student and teacher share one backbone, it is that one.
    """
    network = runtime.unwrap(state.student)
    source = network if isinstance(state.teacher, TeacherHead) else state.teacher
    about = EncoderFile(
        name=options.backbone,
        in_channels=len(options.windows),
        mean=tuple(network.mean.tolist()),
        std=tuple(network.std.tolist()),
        windows=options.shown_windows,
        trained_by={"script": "train_voco.py", "steps": state.step, "options": plain_options(options)},
        patients=tuple(dict.fromkeys([*patients, *state.seen_before])),
    )
    save_encoder(path, source.encoder, about)
