"""The pre-training run: data, steps, log lines, checkpoints and pictures."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from src.core.checkpoint import find_checkpoint
from src.core.config import save_options
from src.core.errors import UserError
from src.core.files import atomic_path, only_writer, write_table
from src.core.log import MetricsLog, is_main_process, say, warn
from src.core.runtime import Runtime, torch_seed
from src.data.png import write_png
from src.nn.encoder import require_true_bf16
from src.nn.loading import StackLoader
from src.nn.schedule import set_lr, warmup_cosine
from src.voco.dataset import VocoDataset, VolumeSample, open_dataset
from src.voco.losses import Objective, build_objective
from src.voco.model import VocoNet, teacher_distance
from src.voco.monitors import COLLAPSE_STD, Monitors
from src.voco.options import VocoOptions
from src.voco.order import VolumeOrder
from src.voco.state import (
    TrainingState,
    build_state,
    clear_folder,
    export_encoder,
    restore_state,
    run_identity,
    save_state,
)
from src.voco.step import StepResult, take_step

MOST_SKIPPED = 25
"""Steps in a row that fp16's scaler may skip: from its first scale, 2^16, to far below 1."""


Draw = Callable[[VolumeSample, torch.Tensor, tuple[int, int, int]], np.ndarray]
"""A picture (H, W, 3) of a batch, its similarities (B, R, N) and the grid (z, y, x)."""


def pretrain(options: VocoOptions, draw: Draw | None = None) -> Path:
    """Pre-train as `options` say, from the start or from a checkpoint, and export the encoder.

    Under torchrun every process calls this; rank 0 alone writes.

    Args:
        draw: makes the pictures of `--picture-every`; without it there are none.

    Returns:
        The path of `encoder.safetensors`.

    Raises:
        UserError: data that cannot be used, a checkpoint of another run, or a loss that is no longer a
        number.
    """
    output = Path(options.output)
    dataset = open_dataset(options)
    checkpoint = find_checkpoint(output, options.resume)
    with Runtime.create(options.precision) as runtime:
        # a checkpoint brings its own weights: the file of the first ones need not be there any more
        given = replace(options, encoder=None, pretrained=False) if checkpoint else options
        state = build_state(given, runtime)
        if runtime.is_bf16_on_cpu and isinstance(state.student, VocoNet):
            require_true_bf16(state.student.encoder, len(options.windows), options.tile)
        state.teacher.to(runtime.device)
        state.student, state.optimizer = runtime.prepare(state.student, state.optimizer)
        run = PretrainingRun(options, dataset, runtime, state, checkpoint, draw)
        if not is_main_process():
            run.train(None)
            return output / "encoder.safetensors"
        # from here on the folder is written to: whatever is wrong with the options has been said
        output.mkdir(parents=True, exist_ok=True)
        with only_writer(output):
            run.open_folder()
            with closing(MetricsLog(output, drop_after=state.step)) as log:
                run.train(log)
            run.export(output / "encoder.safetensors")
    say(f"wrote {output / 'encoder.safetensors'}")
    return output / "encoder.safetensors"


class PretrainingRun:
    """The steps of a run, with what is logged, saved and drawn between them.

    Args:
        state: before the first step; with a checkpoint, it goes on from there.
    """

    def __init__(
        self,
        options: VocoOptions,
        dataset: VocoDataset,
        runtime: Runtime,
        state: TrainingState,
        checkpoint: Path | None,
        draw: Draw | None = None,
    ) -> None:
        self.draw = draw
        self.options, self.dataset, self.table = options, dataset, dataset.table
        self.runtime, self.state, self.checkpoint = runtime, state, checkpoint
        self.output = Path(options.output)
        self.patients = self.table["patient_id"].drop_duplicates().tolist()
        self.identity = run_identity(options, self.table)
        if checkpoint:
            restore_state(checkpoint, state, runtime, self.identity)
        self.order = VolumeOrder(
            len(dataset),
            options.batch,
            seed=options.seed,
            first_step=state.step,
            steps=options.steps,
            rank=runtime.rank,
            world=runtime.world,
            sets=dataset.sets,
        )
        self.monitors = Monitors()
        self.log: MetricsLog | None = None
        self.has_warned = False

    def open_folder(self) -> None:
        """Say what the run is, and write what is known of it before the first step."""
        where = str(self.runtime.device)
        where += f", {self.runtime.world} processes" if self.runtime.world > 1 else ""
        counts = f"{len(self.table)} series of {len(self.patients)} patients"
        say(f"{counts}, {self.options.backbone} on {where}")
        if self.checkpoint:
            say(f"continuing {self.checkpoint} after step {self.state.step} of {self.options.steps}")
        else:
            clear_folder(self.options)
        save_options(self.options, self.output / "config.yaml")
        own = set(self.patients)
        before = pd.DataFrame({"patient_id": [each for each in self.state.seen_before if each not in own]})
        seen = pd.concat([self.table[["patient_id", "series_id"]], before])
        write_table(seen, self.output / "patients.csv")

    def export(self, path: Path) -> None:
        """Write the encoder as it is now."""
        export_encoder(path, self.state, self.runtime, self.options, self.patients)

    def train(self, log: MetricsLog | None) -> None:
        """Run the steps that are left.

        Args:
            log: where metrics go; None in the processes that do not write.

        Raises:
            UserError: a loss or the gradient is not finite (the message names the step and the series), or
            another process of the run stopped.
        """
        self.log = log
        with self.runtime.lost_peer_in_one_line():
            self._train()

    def _train(self) -> None:
        options, state = self.options, self.state
        # a name that two sets share is one patient's: nobody's crop is placed in his own body as in another's
        patient_of = torch.tensor(self.table.groupby("patient_id").ngroup().to_numpy())
        objective = build_objective(options)
        warmup_steps = round(options.warmup * options.steps)
        results: list[StepResult] = []
        started, skipped = time.perf_counter(), 0
        for batch in StackLoader(self.dataset, options.workers, batch_sampler=self.order):
            lr = warmup_cosine(state.step, options.steps, warmup_steps, options.lr)
            set_lr(state.optimizer, lr)
            # dropout and stochastic depth: other noise in every process, the same in a resumed run
            with torch_seed(options.seed, state.step, self.runtime.rank):
                result = self._take_step(batch, patient_of, objective)
            skipped = skipped + 1 if result.was_skipped else 0
            if not result.is_finite or skipped == MOST_SKIPPED:
                raise UserError(self._describe_failure(result))
            state.step += 1
            results.append(result)
            is_last = state.step == options.steps
            if state.step % options.log_every and not is_last:
                continue
            elapsed = time.perf_counter() - started
            state.seconds += elapsed
            self._report(results, elapsed, lr)
            if self.draw and options.picture_every and state.step % options.picture_every == 0:
                self._draw(batch, result)
            if state.step % options.save_every == 0 or is_last:
                self._save()
            results, started = [], time.perf_counter()

    def _take_step(self, batch: VolumeSample, patient_of: torch.Tensor, objective: Objective) -> StepResult:
        try:
            return take_step(
                self.state, batch, patient_of, objective, self.monitors, self.options, self.runtime
            )
        except torch.OutOfMemoryError:
            raise UserError(
                "the GPU's memory is too small for a step: give --micro-batch (images at a time), "
                "or lower --batch"
            ) from None

    def _report(self, results: list[StepResult], elapsed: float, lr: float) -> None:
        """Log the means since the last report; every process takes part in the sums."""
        names = list(results[0].terms)
        terms = torch.stack([torch.stack(list(result.terms.values())) for result in results]).mean(0)
        means = (self.runtime.sum(terms) / self.runtime.world).tolist()
        figures = {"loss": sum(means)} | {
            f"loss_{name}": value for name, value in zip(names, means, strict=True)
        }
        figures |= self.monitors.read(self.runtime.sum)
        student = self.runtime.unwrap(self.state.student)
        figures["teacher_distance"] = teacher_distance(self.state.teacher, student)
        figures |= {"lr": lr, "seconds": self.state.seconds}
        figures["volumes_per_s"] = len(results) * self.options.batch / elapsed
        if self.log is None:
            return
        self.log.log(self.state.step, **figures)
        say(_log_line(self.state.step, self.options.steps, figures))
        has_collapsed = figures["embedding_std"] < COLLAPSE_STD
        if has_collapsed and not self.has_warned:
            warn(
                f"step {self.state.step}: every crop gets nearly the same embedding (embedding_std "
                f"{figures['embedding_std']:.4f}); lower --lr, or raise --momentum or --batch"
            )
        self.has_warned = has_collapsed

    def _save(self) -> None:
        self.monitors.forget_previous()
        if self.log is None:
            return
        save_state(self.output / "last.pt", self.state, self.runtime, self.identity)
        step, every = self.state.step, self.options.keep_every
        if every and step % every == 0:
            self.export(self.output / f"encoder_{step:07d}.safetensors")

    def _draw(self, batch: VolumeSample, result: StepResult) -> None:
        if self.log is None:
            return
        grid = (self.options.grid_z, self.options.grid, self.options.grid)
        picture = self.draw(batch, result.similarity.cpu(), grid)
        with atomic_path(self.output / "pictures" / f"step_{self.state.step:07d}.png") as temporary:
            write_png(temporary, picture)

    def _describe_failure(self, result: StepResult) -> str:
        terms = ", ".join(f"{name} {value.item():.3g}" for name, value in result.terms.items())
        lost = (~result.losses.isfinite()).tolist()
        keys = self.order.global_batch(self.state.step)
        # a gradient may be lost where every loss is still a number: then any volume may be the cause
        blamed = [key for key, is_lost in zip(keys, lost, strict=True) if is_lost] or keys
        rows = self.table.iloc[[self.dataset.series_of(entry) for _, entry in blamed]]
        series = ", ".join(f"{row.patient_id}/{row.series_id}" for row in rows.itertuples())
        return (
            f"step {self.state.step + 1}: loss or gradient is not finite ({terms}) for series {series}: "
            "go on from the last checkpoint with --precision fp32, or start anew with a lower --lr and "
            "--resume never"
        )


def _log_line(step: int, steps: int, figures: dict[str, float]) -> str:
    terms = ", ".join(
        f"{name.removeprefix('loss_')} {value:.3f}"
        for name, value in figures.items()
        if name.startswith("loss_")
    )
    placing = "cross -"  # without trials, as among series of one patient
    if "cross_placing" in figures:
        placing = (
            "cross {cross_placing:.2f} [{cross_low:.2f}, {cross_high:.2f}] of {cross_trials:.0f}"
        ).format_map(figures)
    template = (
        "step {step}/{steps}  loss {loss:.3f} ({terms})  lr {lr:.1e}  "
        "placing: {placing}, intra {intra_placing:.2f} of {intra_trials:.0f}  "
        "similarity {positive_similarity:.2f} / {negative_similarity:.2f}  std {embedding_std:.2f}  "
        "teacher {teacher_distance:.1e}  {volumes_per_s:.1f} volumes/s"
    )
    # a task without negatives (every crop overlaps every base) has no such figure
    defaults = {"negative_similarity": float("nan"), "positive_similarity": float("nan")}
    return template.format_map(
        defaults | figures | {"step": step, "steps": steps, "terms": terms, "placing": placing}
    )
