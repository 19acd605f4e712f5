"""Random changes of the grey levels of crops, as a few batched operations on the device of the network.

A sample contains the parameters of its crops, drawn from its own generator on the CPU. What follows from them
needs no generator: the noise is read from a fixed bank of normal values. The changed crops are therefore the
same for any number of processes and workers, and equal on CPU and GPU up to rounding.

Probabilities and limits are those of `src.nn.augmentation.AppearanceChange`, which changes single images.
"""

import numpy as np
import torch
from torch import Tensor

HOLES = 3
"""Maximum number of black rectangles of a crop."""

PARAMETERS = 6 + 4 * HOLES
"""Contrast, brightness, gamma, blur, noise, place in the bank of noise; two corners of each hole."""

_BANK = 2**20  # normal values to begin at; float32 parameters count exactly up to 2**24
_PART = 2**23  # grey levels changed at a time: an intermediate result takes 32 MiB
_RADIUS = 4  # of the widest blur, of sigma 1.3 pixels
_SMALLEST_SIGMA = 0.1  # too small to reach the next pixel


def draw_appearance(crops: int, strength: float, tile: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the changes of crops: contrast and brightness, gamma, blur, noise and a few black rectangles.

    Args:
        crops: number of crops K, which are changed independently.
        strength: 0 to 1; scales the limits of every change, while probabilities are fixed.
        tile: side of the crops in pixels.

    Returns:
        float32 (K, PARAMETERS) for `Appearance`; (0,) at strength 0.
    """
    if not strength:
        return np.empty(0, dtype=np.float32)
    contrasted, bent, blurred, noisy, holed = (rng.random((crops, 5)) < (0.8, 0.5, 0.3, 0.5, 0.3)).T
    contrast = np.where(contrasted, 1 + rng.uniform(-0.4 * strength, 0.4 * strength, crops), 1)
    brightness = contrasted * rng.uniform(-0.3 * strength, 0.3 * strength, crops) * 255
    gamma = np.where(bent, rng.uniform(1 / (1 + strength), 1 + strength, crops), 1)
    sigma = blurred * rng.uniform(0.1, 0.1 + 1.2 * strength, crops)  # pixels
    noise_std = noisy * rng.uniform(0, 0.08 * strength, crops) * 255
    place = rng.integers(_BANK, size=crops)
    count = holed * rng.integers(1, HOLES + 1, crops)
    sides = (tile * rng.uniform(0.05, 0.05 + 0.2 * strength, (crops, HOLES, 2))).astype(np.int64)
    first = rng.integers(0, tile - sides + 1)  # row and column
    last = first + sides * (np.arange(HOLES) < count[:, None])[..., None]
    single = np.stack([contrast, brightness, gamma, sigma, noise_std, place], axis=1)
    holes = np.concatenate([first, last], axis=-1).reshape(crops, 4 * HOLES)
    return np.concatenate([single, holes], axis=1).astype(np.float32)


class Appearance:
    """Changes the grey levels of crops by drawn parameters: the same for all slices of a crop.

    Noise differs between windows, but not between the slices and neighbours of a crop.

    Args:
        tile: side of the crops in pixels.
        windows: number of windows of a slice.
        device: where crops are changed.
    """

    def __init__(self, tile: int, windows: int, device: torch.device) -> None:
        self.noise_shape = (windows, tile, tile)
        bank = np.random.default_rng(0).standard_normal(_BANK + windows * tile * tile, dtype=np.float32)
        # all overlapping stretches of the bank, as a view: indexing copies only the chosen ones
        self.noise = torch.from_numpy(bank).to(device).unfold(0, windows * tile * tile, 1)
        self.shifts = shift_matrices(tile, _RADIUS).to(device)
        self.levels = torch.arange(256, device=device)
        self.pixels = torch.arange(tile, device=device)

    @torch.no_grad()
    def __call__(self, tiles: Tensor, parameters: Tensor) -> Tensor:
        """Change crops; call it outside of autocast, whose matrix products are too coarse for grey levels.

        Args:
            tiles: uint8 (..., T, tile, tile, C), channels as in `VolumeSample`.
            parameters: float32 (..., PARAMETERS); empty ones change nothing.

        Returns:
            uint8 in the shape of `tiles`.
        """
        if not parameters.numel():
            return tiles
        crops, drawn = tiles.flatten(0, -5), parameters.flatten(0, -2)  # (M, T, tile, tile, C), (M, P)
        size = max(1, _PART * len(crops) // crops.numel())
        parts = [self._change(*part) for part in zip(crops.split(size), drawn.split(size), strict=True)]
        return torch.cat(parts).view(tiles.shape)

    def _change(self, crops: Tensor, drawn: Tensor) -> Tensor:
        """Change uint8 (M, T, tile, tile, C) by parameters (M, PARAMETERS)."""
        images = self._change_levels(crops, *drawn[:, :3, None].unbind(1))
        images = self._blur(images.permute(0, 1, 4, 2, 3), drawn[:, 3])  # (M, T, C, tile, tile)
        self._add_noise(images, drawn[:, 4], drawn[:, 5])
        images = images.clamp_(0, 255).byte().permute(0, 1, 3, 4, 2).contiguous()
        return images.masked_fill_(self._find_holes(drawn[:, 6:])[:, None, :, :, None], 0)

    def _change_levels(self, tiles: Tensor, contrast: Tensor, brightness: Tensor, gamma: Tensor) -> Tensor:
        """Look the grey levels of each crop up in a table of its own, by (M, 1) parameters.

        Returns:
            float32 in the shape of `tiles`: whole levels plus a half, so that the conversion to bytes rounds.
        """
        table = (self.levels * contrast + brightness).clamp(0, 255).div_(255).pow_(gamma)  # (M, 256)
        table = table.mul_(255).round_().add_(0.5)
        rows = 256 * torch.arange(len(tiles), dtype=torch.int32, device=tiles.device)
        places = tiles.int().add_(rows[:, None, None, None, None])
        return table.flatten().index_select(0, places.flatten()).view(tiles.shape)

    def _blur(self, images: Tensor, sigma: Tensor) -> Tensor:
        """Convolve (M, T, C, tile, tile) with Gaussians of the width that albumentations gives them.

        A convolution along an axis, its border reflected, is a product with a matrix: one batched product per
        axis for crops of different widths.
        """
        offsets = torch.arange(-_RADIUS, _RADIUS + 1, device=sigma.device)
        distances = offsets / sigma.clamp(min=_SMALLEST_SIGMA)[:, None]  # (M, taps)
        weights = torch.exp(-0.5 * distances.square())
        weights = weights.masked_fill(offsets.abs() > (3.5 * sigma[:, None]).floor(), 0)
        weights = weights / weights.sum(1, keepdim=True)
        matrices = (weights @ self.shifts.flatten(1)).unflatten(1, self.shifts.shape[1:])  # (M, tile, tile)
        for _ in range(2):  # along x, then y; transposed twice
            shape = images.shape
            images = torch.bmm(images.flatten(1, -2), matrices).view(shape).transpose(-1, -2)
        return images

    def _add_noise(self, images: Tensor, std: Tensor, place: Tensor) -> None:
        """Add noise to (M, T, C, tile, tile), in place."""
        noise = self.noise[place.long()].mul_(std[:, None])  # (M, windows * tile * tile)
        images.unflatten(2, (-1, self.noise_shape[0])).add_(noise.view(-1, 1, 1, *self.noise_shape))

    def _find_holes(self, corners: Tensor) -> Tensor:
        """Find the pixels in rectangles: (M, 4 * HOLES) -> bool (M, tile, tile)."""
        first, last = corners.view(-1, HOLES, 2, 2, 1).unbind(2)  # (M, HOLES, 2, 1): row, column
        rows, columns = ((self.pixels >= first) & (self.pixels < last)).float().unbind(2)  # (M, HOLES, tile)
        return torch.bmm(rows.transpose(1, 2), columns) > 0


def shift_matrices(side: int, radius: int) -> Tensor:
    """Return float32 (2 * radius + 1, side, side): `row @ matrix` shifts a row of pixels, its ends reflected.

    The end pixel is not repeated (OpenCV's BORDER_REFLECT_101).
    """
    source = torch.arange(-radius, radius + 1)[:, None] + torch.arange(side)  # (shifts, side)
    period = max(2 * (side - 1), 1)
    source = source.remainder(period)
    source = torch.minimum(source, period - source) if side > 1 else source.zero_()
    return torch.nn.functional.one_hot(source, side).transpose(1, 2).float()
