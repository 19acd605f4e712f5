"""What all objectives share: networks, optimiser, batches, log, checkpoints, and the exported encoder."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.core.config import plain_options
from src.core.log import is_main_process, say, warn
from src.core.runtime import Runtime, torch_seed
from src.data.selection import Neighbours
from src.nn.encoder import EncoderFile, built_size, require_true_bf16, save_encoder
from src.nn.encoder_input import EncoderInput, warn_of_another_input
from src.nn.execution import StaticNetwork, set_execution
from src.nn.first_weights import patients_seen_by
from src.nn.loading import StackLoader
from src.nn.training import LossAndMetrics, Method, Progress
from src.voco.appearance import Appearance
from src.voco.dataset import VocoDataset, VolumeSample
from src.voco.model import (
    TeacherHead,
    TeacherUpdate,
    VocoNet,
    VolumeVocoNet,
    build_network,
    load_start,
    make_teacher,
    teacher_distance,
    teacher_momentum,
)
from src.voco.monitors import COLLAPSE_STD, log_line
from src.voco.options import VocoOptions
from src.voco.order import VolumeOrder

DrawPicture = Callable[[VolumeSample, Tensor, tuple[int, int, int], int], np.ndarray]
"""Draws a picture (H, W, 3) of a batch, its similarities (B, R, N), the grid (z, y, x) and a channel."""


class Pretraining(Method):
    """Student and teacher of a run; the loss of a batch of volumes is that of a subclass."""

    script = "train_voco.py"
    """named in messages and in the encoder file"""
    memory_advice = "give --micro-batch (images at a time), or lower --batch"
    failure_advice = (
        "go on from the last checkpoint with --precision fp32, or start from scratch with a lower --lr and "
        "--resume never"
    )

    def __init__(
        self,
        options: VocoOptions,
        dataset: VocoDataset,
        runtime: Runtime,
        draw: DrawPicture | None = None,
        with_first_weights: bool = True,
    ) -> None:
        """Create networks and optimiser for the first step; the seed determines the initial weights.

        Args:
            draw: draws the pictures of `--picture-every`, where the objective has similarities to draw.
            with_first_weights: load `--encoder` or `--first-weights`. A checkpoint contains its own weights,
                and the file of the first weights may no longer exist.

        Raises:
            UserError: no such backbone, or first weights do not fit it.
        """
        self.options, self.dataset, self.runtime, self.draw = options, dataset, runtime, draw
        self.patients_before: tuple[str, ...] = ()
        """patients that the first weights were trained on"""
        with torch_seed(options.seed):
            student = self.build_student()
            if with_first_weights:
                shown = EncoderInput(
                    options.shown_windows, Neighbours(options.neighbours, options.neighbour_mm)
                )
                warn_of_another_input(options.source, shown)
                first = load_start(student, options)
                say(f"first weights: {first}")
                self.patients_before = patients_seen_by(options.source)
        student = runtime.share_batch_statistics(student)
        student.train()
        if runtime.is_bf16_on_cpu and not isinstance(student, VolumeVocoNet):
            require_true_bf16(student.encoder, options.channels, options.tile)
        self.network: torch.nn.Module = student
        """the student, which a step trains"""
        self.optimizer = torch.optim.AdamW(
            student.parameters(),
            lr=options.lr,
            weight_decay=options.weight_decay,
            amsgrad=True,
            fused=True,
        )
        self.teacher = make_teacher(student, options.shared_backbone).to(runtime.device)
        self.appearance = Appearance(options.tile, len(options.windows), runtime.device)
        self._volume_losses: dict[int, Tensor] = {}  # (B,) of each batch since the last log line
        self._has_warned = False
        self._order = self._order_from(0)

    def build_student(self) -> VocoNet:
        """Build the network to train, of random weights; torch is seeded.

        Raises:
            UserError: no such backbone, or unsupported sizes.
        """
        return build_network(self.options)

    def read(self, first_batch: int) -> Iterator[VolumeSample]:
        order = self._order_from(first_batch)
        return iter(StackLoader(self.dataset, self.options.workers, batch_sampler=order))

    @abstractmethod
    def compute_terms(self, batch: VolumeSample, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the terms of the loss of a batch, the `number`-th of the run, and metrics for the log.

        Returns:
            Terms, (B,) each, with a graph: the loss is the mean over volumes of their sum. Metrics, () each,
            which are averaged until `report`; one of them, here or there, is `embedding_std`.
        """

    def compute_loss(self, batch: VolumeSample, number: int, step: int) -> LossAndMetrics:
        """Return the mean over this process's volumes of the sum of the terms.

        Gradients are averaged over processes; gradients of crops that other processes compared with return
        through the gather. The result is the gradient of the mean over the global batch, however it is split.
        """
        terms, metrics = self.compute_terms(batch, number)
        losses = torch.stack(list(terms.values())).sum(0)  # (B,)
        self._volume_losses[number] = losses.detach()
        means = {f"loss_{name}": term.detach().mean() for name, term in terms.items()}
        return LossAndMetrics(losses.mean(), means | metrics)

    def encoding_networks(self) -> tuple[torch.nn.Module, ...]:
        """Return the networks that encode the crops of a step, in their order."""
        return self.teacher, self.runtime.unwrap(self.network)

    def before_first_step(self) -> None:
        options, student = self.options, self.runtime.unwrap(self.network)
        sides = (options.slices, options.tile, options.tile, options.channels)
        shape = student.input_shape(options.batch // self.runtime.world, options.crops, *sides)
        networks = [each for each in self.encoding_networks() if not isinstance(each, TeacherHead)]
        parts = [
            StaticNetwork(network.encoder, shape, memory_format=network.memory_format) for network in networks
        ]
        obstacle = "--micro-batch encodes in parts" if options.micro_batch else None
        set_execution(options.execution, parts, self.runtime, obstacle)

    def after_step(self, step: int) -> None:
        self._update_teacher(teacher_momentum(step - 1, self.options))

    @cached_property
    def _update_teacher(self) -> TeacherUpdate:
        return TeacherUpdate(self.teacher, self.runtime.unwrap(self.network))

    def report(self, at: Progress, means: dict[str, float]) -> dict[str, float]:
        loss = sum(value for name, value in means.items() if name.startswith("loss_"))
        metrics = {"loss": loss} | means | self.read_monitors()
        self._volume_losses.clear()
        metrics["teacher_distance"] = teacher_distance(self.teacher, self.runtime.unwrap(self.network))
        metrics |= {"lr": at.lr, "seconds": at.seconds}
        metrics["volumes_per_s"] = at.batches * self.options.batch / at.elapsed_s
        say(log_line(at.step, self.options.steps, metrics))
        self._warn_of_collapse(at.step, metrics["embedding_std"])
        return metrics

    def read_monitors(self) -> dict[str, float]:
        """Return metrics that are not means over batches, since the last call. All processes call it."""
        return {}

    def _warn_of_collapse(self, step: int, embedding_std: float) -> None:
        """Warn at the first of consecutive rows in which the embeddings have no spread."""
        has_collapsed = embedding_std < COLLAPSE_STD
        if has_collapsed and not self._has_warned:
            warn(
                f"step {step}: every crop gets nearly the same embedding (embedding_std "
                f"{embedding_std:.4f}); lower --lr, or raise --momentum or --batch"
            )
        self._has_warned = has_collapsed

    def before_save(self, step: int) -> None:
        every = self.options.keep_every
        if every and step % every == 0 and is_main_process():
            self.export(self.options.output / f"encoder_{step:07d}.safetensors", step)

    def tensors(self) -> dict[str, Any]:
        return {
            "student": self.runtime.unwrap(self.network).state_dict(),
            "teacher": self.teacher.state_dict(),
            "seen_before": list(self.patients_before),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        self.runtime.unwrap(self.network).load_state_dict(saved["student"])
        self.teacher.load_state_dict(saved["teacher"])
        self.patients_before = tuple(saved["seen_before"])

    def name_series(self, number: int) -> str:
        lost = (~self.runtime.gather(self._volume_losses[number]).isfinite()).tolist()
        keys = self._order.global_batch(number)
        # if a gradient is lost while every loss is finite, any volume may be the cause
        blamed = [key for key, is_lost in zip(keys, lost, strict=True) if is_lost] or keys
        rows = self.dataset.index.table().iloc[[self.dataset.index.row_of(entry) for _, entry in blamed]]
        return ", ".join(f"{row.patient_id}/{row.series_id}" for row in rows.itertuples())

    def export(self, path: Path, step: int) -> None:
        """Write the backbone with metadata of the training and its patients.

        Exports the teacher rather than the student: its weights and running statistics average the last
        steps, so they do not depend on the noise of a single batch. If student and teacher share one
        backbone, that one is exported.
        """
        options, network = self.options, self.runtime.unwrap(self.network)
        source = network if isinstance(self.teacher, TeacherHead) else self.teacher
        patients = self.dataset.index.table()["patient_id"].drop_duplicates().tolist()
        about = EncoderFile(
            name=options.backbone,
            in_channels=options.channels,
            mean=tuple(network.mean.tolist()),
            std=tuple(network.std.tolist()),
            windows=options.shown_windows,
            neighbours=options.neighbours,
            neighbour_mm=options.neighbour_mm,
            trained_by={"script": self.script, "steps": step, "options": plain_options(options)},
            patients=tuple(dict.fromkeys([*patients, *self.patients_before])),
            size=0 if isinstance(network, VolumeVocoNet) else built_size(options.backbone, options.tile),
        )
        save_encoder(path, source.encoder, about)

    def _order_from(self, first_step: int) -> VolumeOrder:
        options, runtime = self.options, self.runtime
        return VolumeOrder(
            len(self.dataset),
            options.batch,
            seed=options.seed,
            first_step=first_step,
            steps=options.steps,
            rank=runtime.rank,
            world=runtime.world,
            sets=self.dataset.index.sets,
        )

    def change_appearance(self, batch: VolumeSample) -> Tensor:
        """Return the tiles of a batch as the networks see them, on their device."""
        given = (batch.tiles, batch.appearance)
        return self.appearance(*(part.to(self.runtime.device, non_blocking=True) for part in given))
