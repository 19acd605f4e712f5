"""Augmentation of slice stacks and of crops by one draw each: the only use of albumentations in the kit.

`images=` of shape (T, H, W, C) shares one draw over the slices. The library's own seed would repeat the same
draws in every loader worker and every epoch, so each call draws from the caller's generator.
"""

import importlib.metadata
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import checks for a newer release online

import albumentations as A

if importlib.metadata.version("albumentations") != "2.0.8":
    raise ImportError("the kit needs albumentations 2.0.8: pip install -r requirements.txt")


FLIPS = MappingProxyType({"none": (), "h": (-1,), "v": (-2,), "hv": (-2, -1)})
"""Axes (of ... H, W) that each flip of test-time augmentation reverses: left-right, front-back, both."""


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the random changes to a stack; 0 disables a change."""

    flip: float = 0.5
    """probability of a left-right flip, and of a front-back flip"""
    rotate90: float = 0.5
    """probability of a rotation by a multiple of 90 degrees"""
    affine: float = 0.5
    """probability of a small rotation, zoom and shift"""
    rotate_degrees: float = 15.0
    zoom: float = 0.1
    """maximum relative change of scale"""
    gamma: float = 0.5
    """probability of a gamma and brightness change"""
    dropout: float = 0.25
    """probability of blacking out a few rectangles"""


class StackAugmenter:
    """Augments uint8 stacks with label maps, cropped to `crop`, by draws of the generator of each call."""

    def __init__(self, crop: int, strengths: Augmentation):
        self.pipeline = A.Compose(_transforms(crop, strengths), seed=0)

    def __call__(
        self, images: np.ndarray, rng: np.random.Generator, maps: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Move images (N, S, S, C) and label maps (T, S, S) alike; change grey levels only in images."""
        _draw_from(rng, self.pipeline)
        if maps is None:
            return np.ascontiguousarray(self.pipeline(images=images)["images"]), None
        changed = self.pipeline(images=images, mask=np.ascontiguousarray(np.moveaxis(maps, 0, -1)))
        return np.ascontiguousarray(changed["images"]), np.moveaxis(changed["mask"], -1, 0)


class AppearanceChange:
    """Changes the grey levels of a crop, not its geometry: uint8 (T, h, w, C) -> the same shape.

    Contrast, brightness and gamma, noise, blur and a few black rectangles, with one draw for all slices and
    windows of the crop, except that the noise differs between windows.

    Args:
        strength: above 0, at most 1; scales the limits of every change, while probabilities are fixed.
    """

    def __init__(self, strength: float):
        self.pipeline = A.Compose(
            [
                A.RandomBrightnessContrast(0.3 * strength, 0.4 * strength, p=0.8),
                A.RandomGamma(gamma_limit=(100 / (1 + strength), 100 * (1 + strength)), p=0.5),
                A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 0.1 + 1.2 * strength), p=0.3),
                A.GaussNoise(std_range=(0, 0.08 * strength), p=0.5),
                A.CoarseDropout(
                    num_holes_range=(1, 3),
                    hole_height_range=(0.05, 0.05 + 0.2 * strength),
                    hole_width_range=(0.05, 0.05 + 0.2 * strength),
                    p=0.3,
                ),
            ],
            seed=0,
        )

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        _draw_from(rng, self.pipeline)
        return self.pipeline(images=images)["images"]


class PlaceChange:
    """Changes the geometry of slices and their label map: a flip, and a small rotation, zoom and shift.

    Args:
        flip: probability of a left-right flip.
        affine: probability of the rotation, zoom and shift.
        mirrored: pairs of labels that a left-right flip exchanges, such as those of the kidneys.
    """

    def __init__(self, flip: float, affine: float, mirrored: Sequence[tuple[int, int]]):
        self.flip = flip
        self.swap = np.arange(256, dtype=np.uint8)
        for first, second in mirrored:
            self.swap[[first, second]] = second, first
        change = A.Affine(rotate=(-15, 15), scale=(0.85, 1.15), translate_percent=(-0.06, 0.06), p=affine)
        self.pipeline = A.Compose([change], seed=0)

    def __call__(
        self, images: np.ndarray, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Change neighbouring slices uint8 (T, H, W, C) and the label map (H, W) of the middle one alike."""
        if rng.random() < self.flip:
            images, mask = images[:, :, ::-1], self.swap[mask[:, ::-1]]
        _draw_from(rng, self.pipeline)
        changed = self.pipeline(images=np.ascontiguousarray(images), mask=np.ascontiguousarray(mask))
        return changed["images"], changed["mask"]


def centre_crop(images: np.ndarray, crop: int) -> np.ndarray:
    """Crop the centre: (T, S, S, ...) -> (T, crop, crop, ...)."""
    top, left = ((side - crop) // 2 for side in images.shape[1:3])
    return np.ascontiguousarray(images[:, top : top + crop, left : left + crop])


def _draw_from(rng: np.random.Generator, pipeline: A.Compose) -> None:
    """Let all changes of a pipeline draw from one pair of generators.

    `set_random_seed` would give each change generators of its own, all of the same seed: the changes of a
    pipeline would then happen together or not at all, and it takes a third of the time of a small image.
    """
    pipeline.set_random_state(rng, random.Random(int(rng.integers(2**31))))


def _transforms(crop: int, strengths: Augmentation) -> list[A.BasicTransform]:
    degrees, zoom = strengths.rotate_degrees, strengths.zoom
    candidates = [
        (strengths.flip, lambda p: A.HorizontalFlip(p=p)),
        (strengths.flip, lambda p: A.VerticalFlip(p=p)),
        (strengths.rotate90, lambda p: A.RandomRotate90(p=p)),
        (
            strengths.affine,
            lambda p: A.Affine(
                rotate=(-degrees, degrees), scale=(1 - zoom, 1 + zoom), translate_percent=(-0.05, 0.05), p=p
            ),
        ),
        (strengths.gamma, lambda p: A.RandomGamma(gamma_limit=(80, 125), p=p)),
        (strengths.gamma, lambda p: A.RandomBrightnessContrast(0.1, 0.1, p=p)),
        (
            strengths.dropout,
            lambda p: A.CoarseDropout(
                num_holes_range=(1, 4), hole_height_range=(0.05, 0.15), hole_width_range=(0.05, 0.15), p=p
            ),
        ),
    ]
    return [A.RandomCrop(crop, crop), *(make(p) for p, make in candidates if p > 0)]
