"""Depthwise convolutions of small feature maps: a fast gradient of their weights on CPUs.

oneDNN, with which torch convolves on CPUs, computes it fast only for maps of at least the kernel and its
padding: 7 pixels a side for 5 x 5. Maps of the last blocks are smaller, of 2 to 4 pixels for tiles of 64,
and their gradient took half of a forward and backward pass. A product of matrices per channel is faster.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

LARGEST = 5
"""Side in pixels of the largest maps that take it: its cost grows with the fourth power of the side."""


class DepthwiseConv2d(nn.Conv2d):
    """An `nn.Conv2d` of one filter per channel, of the same parameters and, up to rounding, results."""

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve maps (N, C, H, W)."""
        is_plain = maps.device.type == "cpu" and maps.dtype == self.weight.dtype
        if not is_plain or torch.is_autocast_enabled("cpu") or not self._is_slow(*maps.shape[2:]):
            return super().forward(maps)
        return _Depthwise.apply(maps, self.weight, self.stride, self.padding)

    def _is_slow(self, *sides: int) -> bool:
        needed = [kernel + padding for kernel, padding in zip(self.kernel_size, self.padding, strict=True)]
        return max(sides) <= LARGEST and any(side < least for side, least in zip(sides, needed, strict=True))


def speed_up_depthwise(network: nn.Module) -> None:
    """Turn the depthwise convolutions of a network into `DepthwiseConv2d`; parameters stay the same."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_depthwise(module):
            module.__class__ = DepthwiseConv2d


def _is_depthwise(module: nn.Conv2d) -> bool:
    return (
        module.groups == module.in_channels == module.out_channels > 1
        and module.bias is None
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(maps: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        return nn.functional.conv2d(maps, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        maps, weight, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(maps, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        maps, weight = ctx.saved_tensors
        of_maps = of_weight = None
        if ctx.needs_input_grad[0]:
            of_maps = conv2d_input(maps.shape, weight, gradient, ctx.stride, ctx.padding, groups=len(weight))
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(maps, gradient, weight.shape[2:], ctx.stride, ctx.padding)
        return of_maps, of_weight, None, None


def _weight_gradient(
    maps: Tensor, gradient: Tensor, kernel: torch.Size, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return the gradient (C, 1, *kernel) for inputs (N, C, H, W) and the output's gradient (N, C, h, w).

    Every pixel of an input times every one of the output, summed over the batch; then the pairs of pixels
    are summed that a place in the kernel connects.
    """
    sides, ends = maps.shape[2:], gradient.shape[2:]
    inputs, outputs = (each.permute(1, 0, 2, 3).flatten(2).contiguous() for each in (maps, gradient))
    pairs = inputs.mT @ outputs  # (C, H*W, h*w) of (C, N, H*W) and (C, N, h*w)
    rows, columns = (
        _connections(*each, maps) for each in zip(sides, ends, kernel, stride, padding, strict=True)
    )
    pairs = pairs.unflatten(2, ends).unflatten(1, sides)
    return torch.einsum("chwyx,hyi,wxj->cij", pairs, rows, columns)[:, None]


def _connections(side: int, end: int, kernel: int, stride: int, padding: int, like: Tensor) -> Tensor:
    """Return 1 where a kernel's place connects an input and an output of an axis: (side, end, kernel)."""
    places = torch.arange(side)[:, None, None] - stride * torch.arange(end)[:, None] + padding
    return (places == torch.arange(kernel)).to(like)
