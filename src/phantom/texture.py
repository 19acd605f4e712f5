"""Noise and tissue texture: what makes a painted volume look measured."""

import cv2
import numpy as np

from src.phantom.shapes import Array

NOISE_HU = (6.0, 11.0)
NOISE_GRAIN_MM = 1.1  # standard deviation of the blur: a soft-tissue kernel
TEXTURE_HU = 4.0
TEXTURE_CELL_MM = 18.0


def add_noise(hu: Array, spacing_mm: tuple[float, float, float], rng: np.random.Generator) -> None:
    """Add correlated noise and slow tissue texture to `hu` (Z, Y, X) in place; air stays nearly clean.

    Noise of filtered back-projection is correlated in the plane and little between slices, and grows towards
    the middle of the body, where fewer photons arrive.
    """
    strength = rng.uniform(*NOISE_HU)
    sigma = NOISE_GRAIN_MM / spacing_mm[2]
    field = _coarse_field(hu.shape, spacing_mm, rng)
    rows, columns = hu.shape[1:]
    v, u = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    centre = (1.25 - 0.6 * np.clip(u * u + v * v, 0, 1)).astype(np.float32)
    gain = np.float32(strength) / _blurred_deviation(sigma)
    for index, plane in enumerate(hu):
        grain = cv2.GaussianBlur(rng.standard_normal(plane.shape, np.float32), (0, 0), sigma)
        tissue = np.clip((plane + 950) / 500, 0.25, 1)
        plane += tissue * (gain * centre * grain + field[index])


def _coarse_field(
    shape: tuple[int, ...], spacing_mm: tuple[float, float, float], rng: np.random.Generator
) -> Array:
    """Smooth random HU (Z, Y, X) with cells of `TEXTURE_CELL_MM`, interpolated from a coarse grid."""
    cells = [int(n * step / TEXTURE_CELL_MM) + 2 for n, step in zip(shape, spacing_mm, strict=True)]
    coarse = rng.standard_normal(cells, np.float32) * np.float32(TEXTURE_HU)
    planes = np.stack([cv2.resize(plane, shape[:0:-1], interpolation=cv2.INTER_CUBIC) for plane in coarse])
    at = np.linspace(0, len(planes) - 1, shape[0])
    below = np.minimum(at.astype(int), len(planes) - 2)
    mix = (at - below).astype(np.float32)[:, None, None]
    return planes[below] * (1 - mix) + planes[below + 1] * mix


def _blurred_deviation(sigma: float) -> float:
    """Standard deviation that white noise of deviation 1 keeps after the blur (its kernel's energy)."""
    size = 2 * int(np.ceil(4 * sigma)) + 1
    kernel = cv2.getGaussianKernel(size, sigma)
    return float((kernel**2).sum())
