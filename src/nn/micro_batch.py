"""Encode a batch in parts that fit into small memories, with the gradient of the whole (`--micro-batch`).

Each part is computed again in the backward pass (gradient checkpointing), so that only the activations of one
part are in memory. If a backbone normalises by batch statistics, those of a part replace those of the batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from src.core.errors import UserError

FEWEST_IN_BATCH_STATISTICS = 4
"""Minimum number of images per part for a BatchNorm; fewer do not represent the batch."""


def encode_in_parts(
    encode: Callable[[Tensor], Tensor], images: Tensor, size: int, encoder: nn.Module
) -> Tensor:
    """Return `encode(images)`, computed on at most `size` images at a time; on all at once if `size` is 0.

    Args:
        encoder: the network that `encode` calls, whose running statistics count every image once.
    """
    parts = split_evenly(images, size)
    if len(parts) == 1:
        return encode(images)
    return torch.cat([run_part(encode, encoder, part) for part in parts])


def split_evenly(images: Tensor, size: int) -> Sequence[Tensor]:
    """Split images into parts of at most `size`, of equal size: a small last one has poor batch statistics.

    With `size` 0 all images are one part.
    """
    return images.tensor_split(-(-len(images) // size)) if size else (images,)


def run_part(encode: Callable, encoder: nn.Module, *inputs: Tensor):
    """Return `encode(*inputs)`, a tensor or several, without keeping the activations of `encoder`."""
    if not torch.is_grad_enabled():
        return encode(*inputs)

    def contexts():  # contexts of the first and of the second computation
        return nullcontext(), _kept_statistics(encoder)

    return checkpoint(encode, *inputs, use_reentrant=False, context_fn=contexts)


def smallest_part(encoder: nn.Module) -> int:
    """Return the minimum number of images per part: several for BatchNorms."""
    couples_images = any(isinstance(module, _BatchNorm) for module in encoder.modules())
    return FEWEST_IN_BATCH_STATISTICS if couples_images else 1


def require_enough_statistics(encoder: nn.Module, backbone: str, size: int) -> None:
    """Refuse parts that are too small for an encoder that normalises by batch statistics.

    Raises:
        UserError: `--micro-batch` must be larger.
    """
    if 0 < size < smallest_part(encoder):
        raise UserError(
            f"option --micro-batch must be at least {smallest_part(encoder)} for {backbone}, "
            f"which normalises by the statistics of each part, got {size}"
        )


@contextmanager
def _kept_statistics(encoder: nn.Module) -> Iterator[None]:
    """Keep the running statistics of BatchNorms, which still normalise by the batch: the second computation
    of the same images must not be counted again."""
    layers = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    try:
        for layer, (_, counter) in zip(layers, before, strict=True):
            layer.momentum = 0.0
            layer.num_batches_tracked = None if counter is None else counter.clone()
        yield
    finally:
        for layer, (momentum, counter) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, counter
