"""Kernels of a first layer for other input channels: other CT windows, neighbours or masks than in the file.

The input of a network is slice by slice, the windows of a slice together, then mask channels. A new kernel
mixes the kernels of the file by a matrix of shares, whose rows keep the scale of the responses.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def mix_channels(kernel: Tensor, shares: Tensor) -> Tensor:
    """Return a kernel (out, C, ...) for the channels of `shares` (C, K) from one (out, K, ...) of a file."""
    return torch.einsum("ok...,ck->oc...", kernel, shares.to(kernel))


def shares_by_number(held: int, images: int, mask_channels: int = 0) -> Tensor:
    """Return shares (images + masks, held) for channels of which only the number is known.

    The kernels of the file repeat if their number divides the number of images, as the colours of ImageNet
    for three windows or three neighbours. Otherwise, every image gets their mean: a grey image in every
    colour. Kernels of masks are zero, which training then learns to use.
    """
    if images % held == 0:
        shares = torch.eye(held).repeat(images // held, 1)
    else:
        shares = torch.full((images, held), 1 / held)
    return _with_masks(shares * (held / images), mask_channels)


def shares_by_window(
    held: Sequence[str], held_slices: int, windows: Sequence[str], slices: int, mask_channels: int = 0
) -> Tensor:
    """Return shares for channels whose windows are all in a file: every window gets its own kernel.

    Slices are matched from the middle. Slices that the file lacks get kernels of zero, which training then
    learns to use, so that the features are those of the file's own input; kernels of slices that the new
    input lacks are added to those of its end slices.

    Args:
        held: windows of a slice in the file.
        held_slices: number of adjacent slices in the file.
        windows: windows of a slice in the new input, all of them in `held`.
        slices: number of adjacent slices in the new input.
    """
    chosen = torch.eye(len(held))[[held.index(window) for window in windows]]  # (windows, held)
    offsets = torch.arange(held_slices) - held_slices // 2
    places = (offsets + slices // 2).clamp(0, slices - 1)  # in the new input, of each slice of the file
    across = torch.eye(slices)[:, places]  # (slices, held slices)
    shares = torch.kron(across, chosen * (len(held) / len(windows)))
    return _with_masks(shares, mask_channels)


def _with_masks(shares: Tensor, mask_channels: int) -> Tensor:
    return torch.cat([shares, shares.new_zeros(mask_channels, shares.shape[1])])
