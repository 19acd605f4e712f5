"""Operations and peak memory of work that is not run, by tensors that have shapes and no data."""

import weakref
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class Count(NamedTuple):
    flops: int
    """Of convolutions and matrix products, a multiplication and an addition being two."""
    peak_bytes: int
    """Of the tensors that live at one time, those that were there before among them."""


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
        rest: what else aten.convolution_backward takes; transposed, and which gradients are asked for.
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
