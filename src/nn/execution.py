"""How the networks of a training step are executed (`--execution`): eagerly, compiled, or as CUDA graphs.

A step of many small kernels waits for Python, which launches them one by one. A CUDA graph launches those of
a network's forward or backward pass at once (https://docs.pytorch.org/docs/stable/notes/cuda.html,
partial-network capture); the kernels are the same. torch.compile makes fewer and larger kernels, and takes
minutes to do so.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from src.core.config import Execution
from src.core.errors import UserError
from src.core.log import say
from src.core.runtime import Runtime


class StaticNetwork(NamedTuple):
    """A network that gets inputs of one shape in every step, and returns one tensor or a tuple of tensors."""

    network: nn.Module
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format


def set_execution(
    execution: Execution, parts: Iterable[StaticNetwork], runtime: Runtime, obstacle: str | None = None
) -> None:
    """Change in place how networks are executed. Names of their tensors do not change.

    Call it when they are on their device, in the mode (training or evaluation) of the steps. A deep copy of
    a network must be made before.

    Args:
        obstacle: reason why the method cannot use CUDA graphs with its options. With it, without a GPU, and
            with several processes, `graph` runs eagerly, as one line says.

    Raises:
        UserError: a network cannot be captured.
    """
    if execution == "compile":
        for network in (part.network for part in parts):
            network.compile()
            if hasattr(network, "forward_intermediates"):  # of a timm encoder, for a decoder
                network.forward_intermediates = torch.compile(network.forward_intermediates)
    if execution != "graph":
        return
    if runtime.device.type != "cuda":
        obstacle = "it needs a GPU"
    elif runtime.world > 1:
        obstacle = "it needs a single process"
    if obstacle:
        say(f"option --execution graph: {obstacle}; steps run eagerly")
        return
    for part in parts:
        try:
            _capture(part, runtime)
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"option --execution graph does not work here ({reason}): use eager") from None


def _capture(part: StaticNetwork, runtime: Runtime) -> None:
    """Replace a network's forward pass by a CUDA graph; other shapes than the captured one run eagerly."""
    network, eager = part.network, part.network.forward
    sample = torch.zeros(part.shape, dtype=part.dtype, device=runtime.device)
    if part.memory_format != torch.contiguous_format:
        sample = sample.contiguous(memory_format=part.memory_format)
    # running statistics must not change by the passes that warm up
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    with runtime.uncached_autocast():
        # a memory pool each: in a shared one, backward passes in another order would overwrite activations
        torch.cuda.make_graphed_callables(network, (sample,), allow_unused_input=True)
    with torch.no_grad():
        for buffer, value in before:
            buffer.copy_(value)
    replay_where_it_fits(network, eager, network.forward, sample)


def replay_where_it_fits(
    network: nn.Module,
    eager: Callable[[torch.Tensor], Any],
    replay: Callable[[torch.Tensor], Any],
    sample: torch.Tensor,
) -> None:
    """Let a network call `replay` for inputs like `sample` in its present mode, and else `eager`."""
    is_training = network.training

    def forward(images: torch.Tensor) -> Any:
        fits = (images.shape, images.dtype) == (sample.shape, sample.dtype)
        return (replay if fits and network.training == is_training else eager)(images)

    network.forward = forward
