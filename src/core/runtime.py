"""Device, precision, processes and seeds: the kit's one use of accelerate.

The learning-rate schedule and the checkpoints stay with the caller: accelerate would step the former once a
process, and unpickles the latter.
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
"""Environment variables by which a user sets the allocation."""

_MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_PATIENCE = timedelta(hours=6)
"""How long processes wait for one that has more to do, such as scoring. torch's own limit is ten minutes."""


class Runtime:
    """The device of a run, its precision, and the processes that share it."""

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._first_scale = self.scaler_state()

    @classmethod
    def create(cls, precision: Precision = "auto", *, one_process: bool = False) -> "Runtime":
        """Set up the device, the precision, and under torchrun the exchange between processes.

        On a CPU the process keeps its memory from then on, see `keep_freed_memory`.

        Args:
            precision: `auto` is bf16 on a GPU that has it, fp16 on older ones, fp32 on a CPU.
            one_process: the caller cannot share its work out.

        Raises:
            UserError: fp16 without a GPU, another precision than this process had
                before, or a start under torchrun with `one_process`.
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
        """What `auto` came to: fp32, bf16 or fp16."""
        return _precision_of(self._accelerator)

    @property
    def is_bf16_on_cpu(self) -> bool:
        """Where gradients of some layers cannot be trusted, see `require_true_bf16`."""
        return self.precision == "bf16" and self.device.type == "cpu"

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return self._accelerator.process_index

    @property
    def world(self) -> int:
        """How many processes share the run."""
        return self._accelerator.num_processes

    def describe(self) -> str:
        """Such as `cuda:0, 2 processes`."""
        return f"{self.device}, {self.world} processes" if self.world > 1 else str(self.device)

    def prepare(self, *parts: Any) -> Any:
        """Move models to the device and wrap them, optimisers and loaders for the processes at hand."""
        return self._accelerator.prepare(*parts)

    def release(self) -> None:
        """Let go of all that was prepared: the next training begins as the first one did."""
        self._accelerator.free_memory()
        self.load_scaler(self._first_scale)

    def share_batch_statistics(self, model: nn.Module) -> nn.Module:
        """Let BatchNorm see the batch of all processes. Only GPUs can; on CPUs each process keeps its own."""
        if self.world == 1 or self.device.type != "cuda":
            return model
        return synchronised(model)

    def share_buffers(self, model: nn.Module) -> None:
        """Give the statistics that a model normalises by, of rank 0, to every process.

        On GPUs `share_batch_statistics` has made them equal; on CPUs each process has those of its share.
        """
        if self.world > 1 and self.device.type != "cuda":
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """(B, ...) of every process, in order -> (world * B, ...), the same in all of them.

        Gradients flow back to the process that made a row: those of all processes add up.
        """
        if self.world == 1:
            return tensor
        if not (tensor.requires_grad and torch.is_grad_enabled()):
            return self._accelerator.gather(tensor.contiguous())
        return _GatherWithGradient.apply(tensor.contiguous())

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the processes."""
        return self._accelerator.reduce(tensor, reduction="sum") if self.world > 1 else tensor

    def gather_rows(self, rows: list[Any]) -> list[Any]:
        """The rows of every process, in order, the same in all of them: plain values, no tensors."""
        return gather_object(rows) if self.world > 1 else rows

    def wait_for_all(self) -> None:
        """Go on once every process has come here."""
        self._accelerator.wait_for_everyone()

    @contextmanager
    def lost_peer_in_one_line(self) -> Iterator[None]:
        """Where another process of the run has stopped, this one can only stop too: it says so in one line.

        Raises:
            UserError: the exchange between the processes broke off.
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
        """Leave the exchange between processes, which a program that simply ends would complain about.

        Not after an error: leaving waits for the others, who may wait for this one.
        """
        if kind is None and distributed.is_initialized():
            # To free the group would wait for gloo's threads without letting others into Python, while a
            # thread that releases tensors of the last exchange waits for Python (torch 2.8).
            _never_free(distributed.group.WORLD)
            with suppress(RuntimeError):  # another process is gone already
                self._wait_for_all_a_last_time()
            distributed.destroy_process_group()

    def _wait_for_all_a_last_time(self) -> None:
        """With a barrier that gloo's thread does not free, and with it tensors of the exchanges before.

        It would want Python for that, which may have ended by then: the process would abort.
        """
        if self.device.type != "cpu":
            self.wait_for_all()
            return
        barrier = distributed.barrier(async_op=True)
        _never_free(barrier)
        barrier.wait()

    def autocast(self) -> AbstractContextManager:
        return self._accelerator.autocast()

    def backward(self, loss: torch.Tensor) -> None:
        self._accelerator.backward(loss)

    def clip_grad_norm(self, parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
        return self._accelerator.clip_grad_norm_(parameters, max_norm)

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The model without its wrappers, as its weights are to be saved."""
        return self._accelerator.unwrap_model(model)

    def scaler_state(self) -> dict[str, Any]:
        """The state of fp16's loss scaling, empty in other precisions."""
        scaler = self._accelerator.scaler
        return scaler.state_dict() if scaler is not None else {}

    def load_scaler(self, state: dict[str, Any]) -> None:
        if self._accelerator.scaler is not None and state:
            self._accelerator.scaler.load_state_dict(state)


def keep_freed_memory() -> bool:
    """Keep what is freed from now on for the next allocation of this process.

    torch has a cache of freed blocks for GPUs, none for CPUs: there every large activation comes from the
    system, which clears it page by page, again in each step. Where that is slow, as on virtual machines, it
    takes up to half of a forward pass. The process stays as large as it was at its peak.

    Returns:
        Whether it does so: not without glibc, nor where the environment says how it is to allocate.
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
    """bf16 where the GPU computes in it, fp16 on older ones as the T4, which only emulates bf16."""
    if not on_gpu:
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def synchronised(model: nn.Module) -> nn.Module:
    """The model with every BatchNorm replaced by one that sees the batch of all processes.

    By timm: its BatchNorms hold the activation that follows, which torch's own conversion would drop.
    """
    from timm.layers import convert_sync_batchnorm  # slow to import, and only several GPUs need it

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
    """The random numbers of one sample: the same in every process, worker or resumed run."""
    return np.random.default_rng([seed, epoch, index])


@contextmanager
def torch_seed(*entropy: int) -> Iterator[None]:
    """Draws of torch inside the block follow `entropy` alone; the state outside is left as it was."""
    seed = int(np.random.SeedSequence(list(entropy)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
