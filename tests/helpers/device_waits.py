"""Training steps on a GPU, or on a device without values, that fail where they would wait for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.core.runtime import Runtime
from src.nn.training import TrainingLoop

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ("meta", pytest.param("cuda", marks=(pytest.mark.gpu, needs_gpu)))
"""Devices of `train_without_waits`, to parametrise a test."""


class NoWaits(TorchDispatchMode):
    """Raises for copies to the meta device that would wait for a GPU.

    Tensors of the meta device have a shape and no values: reading one raises by itself, and so does anything
    whose result's shape depends on values.
    """

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        result = function(*arguments, **keywords)
        tensors = [each for each in tree_leaves((arguments, keywords, result)) if isinstance(each, Tensor)]
        is_on_device = [each.is_meta for each in tensors if each.is_meta or each.dim()]  # numbers are passed
        is_created = function is torch.ops.aten.lift_fresh.default
        is_copied = not all(is_on_device) and not keywords.get("non_blocking")
        if any(is_on_device) and (is_created or is_copied):
            raise AssertionError(f"{function} waits for a copy to the device")
        return result


def train_without_waits(build: Callable[[], tuple[TrainingLoop, Any]], device: str) -> None:
    """Train on a batch; fail where the step waits for the device.

    On the meta device, without a step of the optimiser, whose parameters are those of the CPU.

    Args:
        build: returns a loop before its first step and a batch on the CPU.
    """
    if device == "cuda":
        loop, batch = build()
        batch = type(batch)(*(part.pin_memory() for part in batch))
        loop.train_on(batch, 0)  # the first step sets up
        try:
            torch.cuda.set_sync_debug_mode("error")
            loop.train_on(batch, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Runtime, "device", torch.device("meta"))
        loop, batch = build()
        loop.method.network.to("meta")
        with NoWaits():
            loop.train_on(batch, 0)
