"""Device, precision, processes and seeds: the kit's only use of accelerate.

The caller handles learning-rate schedule and checkpoints: accelerate would step the schedule once per
process, and unpickles checkpoints.
"""

import ctypes
import os
import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import distributed, nn

from src.core.config import Precision
from src.core.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt(3)."""

_MALLOC_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Environment variables with which a user configures the allocator."""

_MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_PATIENCE = timedelta(hours=6)
"""Time limit for waiting on a slower process, such as one that scores. torch's default is ten minutes."""


class Runtime:
    """Device and precision of a run, and the processes that share it."""

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._first_scale = self.scaler_state()

    @classmethod
    def create(cls, precision: Precision = "auto", *, one_process: bool = False) -> "Runtime":
        """Set up device, precision and, under torchrun, the communication between processes.

        On a CPU the process keeps its memory from then on, see `keep_freed_memory`.

        Args:
            precision: `auto` is bf16 on a GPU that supports it, fp16 on older ones, fp32 on a CPU.
            one_process: the caller does not support several processes.

        Raises:
            UserError: fp16 without a GPU, a precision that differs from an earlier one in this process, or a
                start under torchrun with `one_process`.
        """
        on_gpu = torch.cuda.is_available()
        if precision == "auto":
            precision = fastest_precision(on_gpu)
        if precision == "fp16" and not on_gpu:
            raise UserError("option --precision fp16 needs a GPU: use fp32 or bf16")
        if is_initialized() and (before := _precision_of(AcceleratorState())) != precision:
            raise UserError(f"this process computes in {before} already: start a new one for {precision}")
        if one_process and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("this runs in one process: start it with python, not torchrun")
        if not on_gpu:
            keep_freed_memory()
        patience = InitProcessGroupKwargs(timeout=_PATIENCE)
        return cls(Accelerator(mixed_precision=_MIXED[precision], cpu=not on_gpu, kwargs_handlers=[patience]))

    @property
    def device(self) -> torch.device:
        return self._accelerator.device

    @property
    def precision(self) -> str:
        """Resolved precision: fp32, bf16 or fp16."""
        return _precision_of(self._accelerator)

    @property
    def is_bf16_on_cpu(self) -> bool:
        """Whether gradients of some layers are unreliable, see `require_true_bf16`."""
        return self.precision == "bf16" and self.device.type == "cpu"

    @property
    def rank(self) -> int:
        """Index of this process, from 0."""
        return self._accelerator.process_index

    @property
    def world(self) -> int:
        """Number of processes that share the run."""
        return self._accelerator.num_processes

    def describe(self) -> str:
        """Return a description such as `cuda:0, 2 processes`."""
        return f"{self.device}, {self.world} processes" if self.world > 1 else str(self.device)

    def prepare(self, *parts: Any) -> Any:
        """Move models to the device and wrap them; wrap optimisers and loaders for the processes."""
        return self._accelerator.prepare(*parts)

    def release(self) -> None:
        """Release everything that was prepared, so that the next training starts from a clean state."""
        self._accelerator.free_memory()
        self.load_scaler(self._first_scale)

    def share_batch_statistics(self, model: nn.Module) -> nn.Module:
        """Let BatchNorm use the batch of all processes, on GPUs only; on CPUs each process uses its own."""
        if self.world == 1 or self.device.type != "cuda":
            return model
        return synchronised(model)

    def share_buffers(self, model: nn.Module) -> None:
        """Copy the statistics that a model normalises with from rank 0 to every process.

        On GPUs `share_batch_statistics` keeps them equal; on CPUs each process has those of its own batches.
        """
        if self.world > 1 and self.device.type != "cuda":
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Concatenate (B, ...) of every process, in rank order: (world * B, ...), equal in all processes.

        Gradients of a row are summed over the processes and flow back to the process that made it.
        """
        if self.world == 1:
            return tensor
        if not (tensor.requires_grad and torch.is_grad_enabled()):
            return self._accelerator.gather(tensor.contiguous())
        return _GatherWithGradient.apply(tensor.contiguous())

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the processes."""
        return self._accelerator.reduce(tensor, reduction="sum") if self.world > 1 else tensor

    def gather_rows(self, rows: list[Any]) -> list[Any]:
        """Concatenate rows of every process, equal in all of them: plain values, no tensors."""
        return gather_object(rows) if self.world > 1 else rows

    def wait_for_all(self) -> None:
        """Block until every process has arrived here."""
        self._accelerator.wait_for_everyone()

    @contextmanager
    def lost_peer_in_one_line(self) -> Iterator[None]:
        """If another process of the run has stopped, stop this one too, with a one-line message.

        Raises:
            UserError: the communication between the processes broke off.
        """
        try:
            yield
        except RuntimeError as error:
            reason = str(error)
            if self.world == 1 or not re.search(r"gloo|nccl|connection|peer", reason, re.IGNORECASE):
                raise
            raise UserError(
                f"process {self.rank} lost the others: one of them stopped, and its error says why "
                f"({reason.splitlines()[0][:100]})"
            ) from None

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the process group, without which exiting programs get a warning.

        Not after an error: leaving waits for the other processes, which may wait for this one.
        """
        if kind is None and distributed.is_initialized():
            # Freeing the group would wait for gloo's threads while holding the GIL, while a thread that
            # releases tensors of the last exchange waits for the GIL (torch 2.8).
            _never_free(distributed.group.WORLD)
            with suppress(RuntimeError):  # another process has already ended
                self._wait_for_all_a_last_time()
            distributed.destroy_process_group()

    def _wait_for_all_a_last_time(self) -> None:
        """Wait with a barrier that gloo's thread never frees, nor the tensors of earlier exchanges with it.

        Freeing them needs the GIL; after the interpreter has ended, that would abort the process.
        """
        if self.device.type != "cpu":
            self.wait_for_all()
            return
        barrier = distributed.barrier(async_op=True)
        _never_free(barrier)
        barrier.wait()

    def autocast(self) -> AbstractContextManager:
        return self._accelerator.autocast()

    def uncached_autocast(self) -> AbstractContextManager:
        """Return an autocast that keeps no casts of weights: a CUDA graph has to cast them at each replay."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        is_mixed = dtype is not None
        return torch.autocast(self.device.type, dtype=dtype, enabled=is_mixed, cache_enabled=False)

    def backward(self, loss: torch.Tensor) -> None:
        self._accelerator.backward(loss)

    def clip_grad_norm(self, parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
        return self._accelerator.clip_grad_norm_(parameters, max_norm)

    def unwrap(self, model: nn.Module) -> nn.Module:
        """Return the model without its wrappers, for saving its weights."""
        return self._accelerator.unwrap_model(model)

    def scaler_state(self) -> dict[str, Any]:
        """Return the state of fp16's loss scaling, empty in other precisions."""
        scaler = self._accelerator.scaler
        return scaler.state_dict() if scaler is not None else {}

    def load_scaler(self, state: dict[str, Any]) -> None:
        if self._accelerator.scaler is not None and state:
            self._accelerator.scaler.load_state_dict(state)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the CPU to a device without waiting for it.

    A copy from memory that is not pinned waits for all work of a GPU, even with `non_blocking`.
    """
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def keep_freed_memory() -> bool:
    """Keep memory freed from now on for later allocations of this process.

    torch caches freed blocks on GPUs but not on CPUs: there every large activation is allocated from the
    system, which clears it page by page in each step. On slow systems such as virtual machines this takes up
    to half of a forward pass. The process stays as large as its peak.

    Returns:
        Whether it is active: not without glibc, nor if environment variables configure the allocator.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _MALLOC_SETTINGS):
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1))


def _precision_of(state: Accelerator | AcceleratorState) -> str:
    """fp32, bf16 or fp16."""
    return next(name for name, mixed in _MIXED.items() if mixed == state.mixed_precision)


def _never_free(thing: Any) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def fastest_precision(on_gpu: bool) -> str:
    """Return bf16 if the GPU computes in it, fp16 on older ones such as the T4, which only emulate bf16."""
    if not on_gpu:
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def synchronised(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm of the model by one that uses the batch of all processes.

    Uses timm: its BatchNorms include the activation that follows, which torch's own conversion would drop.
    """
    from timm.layers import convert_sync_batchnorm  # slow to import, and needed only with several GPUs

    return convert_sync_batchnorm(model)


class _GatherWithGradient(torch.autograd.Function):
    """(B, ...) of every process -> (world * B, ...); a row's gradients are summed over the processes."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # the sum is taken in place
        distributed.all_reduce(gradient)
        return gradient.chunk(distributed.get_world_size())[distributed.get_rank()]


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Random generator of one sample: the same in every process, worker or resumed run."""
    return np.random.default_rng([seed, epoch, index])


@contextmanager
def torch_seed(*entropy: int) -> Iterator[None]:
    """Seed torch with `entropy` alone inside the block; the state outside is restored."""
    seed = int(np.random.SeedSequence(list(entropy)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
