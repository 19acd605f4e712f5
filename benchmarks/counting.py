"""Training steps and forward passes: operations and memory counted without data, or measured on a GPU."""

import statistics
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from harness import seconds_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from src.core.runtime import Runtime
from src.voco.model import build_network, embed_by_both, make_teacher
from src.voco.options import VocoOptions

META = torch.device("meta")


class Count(NamedTuple):
    flops: int
    """Of convolutions and matrix products, a multiplication and an addition being two."""
    peak_bytes: int
    """Of the tensors that live at one time, those that were there before among them."""


@dataclass(frozen=True)
class Step:
    """A training step, or a forward pass."""

    networks: tuple[nn.Module, ...]
    forward: Callable[[], Tensor]
    """The loss of a training step; of a forward pass any of its answers."""
    trained: nn.Module | None
    """Whose gradients the step computes; None for a forward pass."""
    finish: Callable[[], None] = lambda: None
    """What follows the gradients: clipping, optimiser, moving average."""

    def run(self, runtime: Runtime | None = None) -> None:
        """Once, in the precision of a runtime, without one in fp32."""
        if self.trained is not None:
            self.trained.zero_grad()
        autocast = runtime.autocast() if runtime else nullcontext()
        with torch.set_grad_enabled(self.trained is not None), autocast:
            answer = self.forward()
        if self.trained is not None:
            answer.backward()
            self.finish()


def voco_step(options: VocoOptions, device: torch.device, volumes: int, crops: int) -> Step:
    """Student forward and backward, teacher forward, on noise: `crops` crops of each volume."""
    student = build_network(options).train()
    teacher = make_teacher(student, options.shared_backbone).to(device)
    student.to(device)
    shape = (volumes, crops, options.slices, options.tile, options.tile, options.channels)
    tiles = draw_noise(*shape, device=device)

    def forward() -> Tensor:
        embeddings, _ = embed_by_both(student, teacher, tiles)
        return embeddings.float().square().mean()

    return Step((student, teacher), forward, student)


def draw_noise(*shape: int, device: torch.device) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, device=device)


def count_step(step: Step) -> Count:
    """Operations and memory in fp32 of a step on torch's meta device, which is not run."""
    existing = [each for network in step.networks for each in (*network.parameters(), *network.buffers())]
    return count(step.run, existing)


def measure_step(step: Step, runtime: Runtime, repeats: int) -> tuple[float, int]:
    """Median seconds and peak bytes on a GPU, after two runs that set it up."""
    for _ in range(2):
        step.run(runtime)
    torch.cuda.reset_peak_memory_stats()
    seconds = [seconds_of(lambda: step.run(runtime)) for _ in range(repeats)]
    return statistics.median(seconds), torch.cuda.max_memory_allocated()


def count(work: Callable[[], Any], existing: list[Tensor]) -> Count:
    """Count what `work`, on tensors of torch's meta device, would compute and hold.

    It runs twice, for torch's counter of operations keeps tensors alive that nothing else needs. What a
    kernel uses inside itself is not seen, nor are the blocks that an allocator keeps for later.

    Args:
        existing: tensors that live before the work begins, as parameters do.
    """
    live = LiveBytes(existing)
    with live:
        work()
    formulas = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    flops = FlopCounterMode(display=False, custom_mapping=formulas)
    with flops:
        work()
    return Count(flops.get_total_flops(), live.peak)


def convolution_backward_flops(
    grad_output: tuple[int, ...],
    inputs: tuple[int, ...],
    weight: tuple[int, ...],
    *rest: Any,
    out_shape: Any = None,
) -> int:
    """A gradient of a convolution costs what the convolution does, that of its input as that of its weight.

    torch counts the weight's as if every group saw all channels: a depthwise convolution of a thousand
    channels would count a thousand times too much.

    Args:
        grad_output, inputs, weight: shapes.
        rest: what else aten.convolution_backward takes; transposed, and which gradients are requested.
    """
    is_transposed, wanted = rest[4], rest[7]
    places = prod((inputs if is_transposed else grad_output)[2:])
    return 2 * inputs[0] * places * prod(weight) * (wanted[0] + wanted[1])


class LiveBytes(TorchDispatchMode):
    """The bytes of all storages that live at a time: inside this mode, or among those given to it."""

    def __init__(self, existing: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()
        for tensor in existing:
            self._add(tensor)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        results = function(*arguments, **(keywords or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._add(result)
        return results

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()  # views share theirs
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
