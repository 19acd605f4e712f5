"""The training loop that pre-training, segmentation and the classifier share.

A `Method` provides the networks, the loss of a batch and the metrics. The loop takes the steps, logs, saves,
resumes, and stops with a one-line message if training cannot continue: not enough memory, a loss that is not
finite, an fp16 scale that never settles, a process that lost the others.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from src.core.errors import UserError
from src.core.files import atomic_path
from src.core.log import MetricsLog, is_main_process, progress
from src.core.run_folder import require_same
from src.core.runtime import Runtime, torch_seed
from src.nn.schedule import LoopSettings, set_lr, warmup_cosine
from src.nn.tracking import WandbWriter

MAX_SKIPPED = 25
"""Maximum number of consecutive steps that fp16's scaler may skip: from scale 2^16 to far below 1."""

CHECK_EVERY = 50
"""Maximum number of batches between two checks that losses and gradients are finite. A check waits for the
device, which steps do not."""


class LossAndMetrics(NamedTuple):
    """Result of the forward pass of a batch."""

    loss: Tensor
    """() with a graph"""
    metrics: dict[str, Tensor]
    """() each, without a graph: averaged over batches and processes for the log"""


class BatchResult(NamedTuple):
    """Result of a batch that was trained on, on the device: reading it waits for the step."""

    metrics: dict[str, Tensor]
    is_lost: Tensor
    """(): whether the loss or the gradient is not finite in this process"""
    was_skipped: Tensor
    """(): whether fp16's scaler skipped the step, as an overflow is not a failure"""


class Method(ABC):
    """Interface between the loop and a method. Every process of a run makes all calls, in the same order."""

    name = ""
    """prefix of messages, such as `fold0`; also the folder's label on a progress bar"""
    memory_advice: str
    """advice for the user if memory is too small"""
    failure_advice: str
    """advice for the user if the loss is not finite"""
    network: nn.Module
    """the network being trained; `Runtime.prepare` may wrap it"""
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def read(self, first_batch: int) -> Iterator[Any]:
        """Yield this process's batches, starting with a given batch of the run."""

    @abstractmethod
    def compute_loss(self, batch: Any, number: int, step: int) -> LossAndMetrics:
        """Return the loss of a batch, the `number`-th of the run, after `step` optimiser steps."""

    def seed_parts(self, number: int) -> tuple[int, ...]:
        """Return what a batch's random numbers depend on, besides the seed and the process."""
        return (number,)

    def row(self, step: int) -> int:
        """Return the number of a row of metrics.csv that ends with a step."""
        return step

    @abstractmethod
    def after_step(self, step: int) -> None:
        """Called after the `step`-th optimiser step, to update moving averages of weights."""

    @abstractmethod
    def report(self, at: "Progress", means: dict[str, float]) -> dict[str, float]:
        """Print the progress of training; return the row of metrics.csv, given the means of the metrics."""

    def before_first_step(self) -> None:  # noqa: B027 (most methods do nothing)
        """Called when the networks are on the device, with the weights to start from or to continue."""

    def before_save(self, step: int) -> None:  # noqa: B027 (most methods do nothing)
        """Called before a checkpoint is written."""

    @abstractmethod
    def tensors(self) -> dict[str, Any]:
        """Return the networks' state for a checkpoint."""

    @abstractmethod
    def restore(self, saved: dict[str, Any]) -> None:
        """Load the state that `tensors` returned."""

    @abstractmethod
    def name_series(self, number: int) -> str:
        """Name the series of a batch of all processes that may be the cause, as patient/series."""


class Progress(NamedTuple):
    """Progress of training at a row of metrics.csv."""

    step: int
    """number of optimiser steps so far"""
    batches: int
    """number of batches in this row"""
    lr: float
    elapsed_s: float
    """seconds for the batches of this row"""
    seconds: float
    """seconds for all steps so far, including those before a resumption"""
    batch: Any
    """last batch that was read"""
    is_last: bool


class TrainingLoop:
    """Trains a method in a folder, from the start or from a checkpoint.

    Args:
        identity: must be equal to continue a checkpoint: `options` and a digest of the data.
        free: options that a continued run may change.
    """

    def __init__(
        self,
        method: Method,
        settings: LoopSettings,
        runtime: Runtime,
        folder: Path,
        identity: dict[str, Any],
        free: tuple[str, ...] = (),
    ) -> None:
        self.method, self.settings, self.runtime, self.folder = method, settings, runtime, folder
        self.identity, self.free = identity, free
        self.step = 0
        """number of optimiser steps so far"""
        self.seconds = 0.0
        self._skipped = 0  # consecutive steps
        method.network, method.optimizer = runtime.prepare(method.network, method.optimizer)

    def resume(self, checkpoint: Path, script: str) -> None:
        """Continue from a checkpoint.

        Raises:
            UserError: it is unreadable, is not the script's, or belongs to other options or other series.
        """
        saved = load_checkpoint(checkpoint)
        wanted = {"step", "seconds", "optimizer", "scaler", *self.method.tensors(), *self.identity}
        if not wanted <= saved.keys():
            raise UserError(f"{checkpoint} is not a checkpoint of this version of {script}")
        require_same(
            checkpoint,
            {name: saved[name] for name in self.identity},
            self.identity,
            free=self.free,
            named={"series": "other series than --data and --doubtful give now"},
        )
        self.method.restore(saved)
        self.method.optimizer.load_state_dict(saved["optimizer"])
        self.runtime.load_scaler(saved["scaler"])
        self.step, self.seconds = saved["step"], saved["seconds"]

    def run(self) -> None:
        """Take the remaining steps. Under torchrun every process calls this function; only rank 0 writes.

        Losses and gradients are checked every `CHECK_EVERY` batches and before each row of metrics.csv. After
        one that is not finite the weights in memory are lost, but a checkpoint is written after a check only:
        the run can go on from last.pt.

        Raises:
            UserError: a loss or a gradient is not finite (the message contains the step and the series of the
                first such batch), memory is too small, or another process of the run stopped.
        """
        method, settings = self.method, self.settings
        number = settings.first_batch(self.step)
        batches = method.read(number)
        method.before_first_step()
        with self.runtime.lost_peer_in_one_line(), self._open_log() as log:
            while number < settings.batches:
                started, results = time.perf_counter(), []
                count = min(settings.log_every - number % settings.log_every, settings.batches - number)
                for batch in progress(islice(batches, count), count, method.name):
                    lr = warmup_cosine(self.step, settings.steps, settings.warmup_steps, settings.lr)
                    set_lr(method.optimizer, lr)
                    results.append(self.train_on(batch, number))
                    number += 1
                    if len(results) % CHECK_EVERY == 0 or len(results) == count:
                        unchecked = results[(len(results) - 1) // CHECK_EVERY * CHECK_EVERY :]
                        self._check(unchecked, number - len(unchecked))
                elapsed_s = time.perf_counter() - started
                self.seconds += elapsed_s
                is_last = number == settings.batches
                at = Progress(self.step, count, lr, elapsed_s, self.seconds, batch, is_last)
                row = method.report(at, self._average([result.metrics for result in results]))
                if log is not None:
                    log.log(method.row(self.step), **row)
                if number % settings.save_every == 0 or is_last:
                    self._save()

    def _open_log(self) -> AbstractContextManager[MetricsLog | None]:
        """Open metrics.csv without rows that will be written again; None in processes that do not write."""
        if not is_main_process():
            return nullcontext()
        other = WandbWriter(self.folder) if self.settings.track == "wandb" else None
        return closing(MetricsLog(self.folder, drop_after=self.method.row(self.step), other=other))

    def train_on(self, batch: Any, number: int) -> BatchResult:
        """Train on the `number`-th batch, without waiting for the device."""
        method, runtime, settings = self.method, self.runtime, self.settings
        size, is_first, is_last = settings.group(number)
        try:
            # for dropout and stochastic depth: noise differs between processes, but not in a resumed run
            with torch_seed(settings.seed, *method.seed_parts(number), runtime.rank):
                loss, metrics = method.compute_loss(batch, number, self.step)
                if is_first:
                    method.optimizer.zero_grad()
                runtime.backward(loss / size)
            is_lost = ~loss.detach().isfinite()
            was_skipped = torch.zeros_like(is_lost)
            if is_last:
                norm = runtime.clip_grad_norm(method.network.parameters(), settings.clip_norm)
                method.optimizer.step()
                self.step += 1
                method.after_step(self.step)
                if runtime.precision == "fp16":  # the scaler skips the step and lowers its scale
                    was_skipped = ~norm.isfinite()
                else:
                    is_lost = is_lost | ~norm.isfinite()
        except torch.OutOfMemoryError:
            raise UserError(f"the GPU's memory is too small for a step: {method.memory_advice}") from None
        return BatchResult(metrics, is_lost, was_skipped)

    def _check(self, results: list[BatchResult], first: int) -> None:
        """Stop after batches from the `first` one if one of them was lost, or too many steps were skipped."""
        flags = torch.stack([torch.stack([result.is_lost, result.was_skipped]) for result in results])
        for number, (lost, skipped) in enumerate(self.runtime.sum(flags.float()).tolist(), first):
            *_, ends_step = self.settings.group(number)
            if ends_step:
                self._skipped = self._skipped + 1 if skipped else 0
            if lost or self._skipped == MAX_SKIPPED:
                raise UserError(self._describe_failure(number, results[number - first].metrics))

    def _average(self, rows: list[dict[str, Tensor]]) -> dict[str, float]:
        """Average metrics over batches and processes."""
        means = torch.stack([torch.stack(list(row.values())) for row in rows]).mean(0)
        means = (self.runtime.sum(means) / self.runtime.world).tolist()
        return dict(zip(rows[0], means, strict=True))

    def _save(self) -> None:
        self.method.before_save(self.step)
        if is_main_process():
            content = {
                "step": self.step,
                "seconds": self.seconds,
                "optimizer": self.method.optimizer.state_dict(),
                "scaler": self.runtime.scaler_state(),
            }
            save_checkpoint(self.folder / "last.pt", content | self.method.tensors() | self.identity)

    def _describe_failure(self, number: int, metrics: dict[str, Tensor]) -> str:
        method = self.method
        where = f"{method.name}, step" if method.name else "step"
        values = ", ".join(f"{name} {value.item():.3g}" for name, value in metrics.items())
        return (
            f"{where} {self.settings.step_of(number)}: loss or gradient is not finite ({values}) for series "
            f"{method.name_series(number)}: {method.failure_advice}"
        )


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, text, and lists or dicts of these, atomically by a rename."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only plain data and tensors are accepted (`weights_only=True`).

    Raises:
        UserError: the file is missing, damaged, or contains objects that would have to be unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader meets other files with errors of many kinds
        text = "" if isinstance(error, LookupError) else str(error).strip()
        reason = text.splitlines()[0] if text else type(error).__name__
        raise UserError(
            f"checkpoint {path} cannot be read ({reason}): delete it, or start a new run"
        ) from None
