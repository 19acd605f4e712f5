"""Augmentation of slice stacks by one draw each: the only use of albumentations in the kit.

The library's own seed would repeat the same draws in every loader worker and every epoch, so each call draws
from the caller's generator. Where slices move, albumentations only draws; OpenCV moves each slice once.
"""

import importlib.metadata
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import cv2
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
    """probability of a gamma change, and of a change of contrast and brightness"""
    dropout: float = 0.25
    """probability of blacking out a few rectangles"""


class StackAugmenter:
    """Augments uint8 stacks with label maps, cropped to `crop`, by draws of the generator of each call.

    All changes of place together are one matrix, and those of grey levels one table, so that each slice is
    moved once and looked up once.
    """

    def __init__(self, crop: int, strengths: Augmentation):
        self.crop = crop
        self.places = A.Compose(_place_transforms(crop, strengths), save_applied_params=True)
        self.levels = A.Compose(_level_transforms(strengths))

    def __call__(
        self, images: np.ndarray, rng: np.random.Generator, maps: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Move images (N, S, S, C) and label maps (T, S, S) alike; change grey levels only in images."""
        _draw_from(rng, self.places, self.levels)
        applied = _applied_to(images.shape[1:3], self.places)
        left, top, right, bottom = applied["RandomCrop"]["crop_coords"]
        matrix = _matrix_of(applied, self.crop)
        moved = _warp(images[:, top:bottom, left:right], matrix, cv2.INTER_LINEAR)
        table = self.levels(image=_ALL_LEVELS)["image"]
        if (table != _ALL_LEVELS).any():
            rows = moved.reshape(len(moved), -1)
            cv2.LUT(rows, table.ravel(), dst=rows)
        for x_min, y_min, x_max, y_max in applied.get("CoarseDropout", {}).get("holes", ()):
            moved[:, y_min:y_max, x_min:x_max] = 0
        if maps is None:
            return moved, None
        cropped = maps[:, top:bottom, left:right, None]
        return moved, _warp(cropped, matrix, cv2.INTER_NEAREST)[..., 0]


_ALL_LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)


class AppearanceChange:
    """Changes the grey levels of slices, not their geometry: uint8 (T, h, w, C) -> the same shape.

    Contrast, brightness and gamma, noise, blur and a few black rectangles, with one draw for all slices and
    windows, except that the noise differs between windows.

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
        self.swap = np.arange(256, dtype=np.uint8)
        for first, second in mirrored:
            self.swap[[first, second]] = second, first
        change = A.Affine(rotate=(-15, 15), scale=(0.85, 1.15), translate_percent=(-0.06, 0.06), p=affine)
        self.places = A.Compose([A.HorizontalFlip(p=flip), change], save_applied_params=True)

    def __call__(
        self, images: np.ndarray, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Change neighbouring slices uint8 (T, S, S, C) and the label map (S, S) of the middle one alike."""
        _draw_from(rng, self.places)
        applied = _applied_to(mask.shape, self.places)
        if "HorizontalFlip" in applied:
            mask = self.swap[mask]
        matrix = _matrix_of(applied, len(mask))
        moved = _warp(mask[None, :, :, None], matrix, cv2.INTER_NEAREST)
        return _warp(images, matrix, cv2.INTER_LINEAR), moved[0, :, :, 0]


def centre_crop(images: np.ndarray, crop: int) -> np.ndarray:
    """Crop the centre: a view of (T, S, S, ...), of shape (T, crop, crop, ...)."""
    top, left = ((side - crop) // 2 for side in images.shape[1:3])
    return images[:, top : top + crop, left : left + crop]


def _draw_from(rng: np.random.Generator, *pipelines: A.Compose) -> None:
    """Let all changes of some pipelines draw from one pair of generators.

    `set_random_seed` would give each change generators of its own, all of the same seed: the changes of a
    pipeline would then happen together or not at all, and it takes a third of the time of a small image.
    """
    python_rng = random.Random(int(rng.integers(2**31)))
    for pipeline in pipelines:
        pipeline.set_random_state(rng, python_rng)


def _applied_to(sides: tuple[int, ...], pipeline: A.Compose) -> dict[str, dict[str, Any]]:
    """Draw changes for slices of a height and width; return the parameters of each, by its class."""
    return dict(pipeline(image=np.zeros(sides, np.uint8))["applied_transforms"])


def _place_transforms(crop: int, strengths: Augmentation) -> list[A.BasicTransform]:
    degrees, zoom = strengths.rotate_degrees, strengths.zoom
    affine = {"rotate": (-degrees, degrees), "scale": (1 - zoom, 1 + zoom)}
    sides = {"hole_height_range": (0.05, 0.15), "hole_width_range": (0.05, 0.15)}
    return [
        A.RandomCrop(crop, crop),
        A.HorizontalFlip(p=strengths.flip),
        A.VerticalFlip(p=strengths.flip),
        A.RandomRotate90(p=strengths.rotate90),
        A.Affine(**affine, translate_percent=(-0.05, 0.05), p=strengths.affine),
        A.CoarseDropout(num_holes_range=(1, 4), **sides, p=strengths.dropout),
    ]


def _level_transforms(strengths: Augmentation) -> list[A.BasicTransform]:
    return [
        A.RandomGamma(gamma_limit=(80, 125), p=strengths.gamma),
        A.RandomBrightnessContrast(0.1, 0.1, p=strengths.gamma),
    ]


def _matrix_of(applied: dict[str, dict[str, Any]], crop: int) -> np.ndarray:
    """Compose applied changes: (3, 3) from (x, y, 1) of a cropped pixel to where it moves."""
    matrix, last = np.eye(3), crop - 1
    if "HorizontalFlip" in applied:
        matrix = np.array([[-1, 0, last], [0, 1, 0], [0, 0, 1]]) @ matrix
    if "VerticalFlip" in applied:
        matrix = np.array([[1, 0, 0], [0, -1, last], [0, 0, 1]]) @ matrix
    quarter_turn = np.array([[0, 1, 0], [-1, 0, last], [0, 0, 1]])
    for _ in range(applied.get("RandomRotate90", {}).get("factor", 0)):
        matrix = quarter_turn @ matrix
    return applied["Affine"]["matrix"] @ matrix if "Affine" in applied else matrix


def _warp(images: np.ndarray, matrix: np.ndarray, interpolation: int) -> np.ndarray:
    """Move square images uint8 (N, S, S, C) by a matrix, into a contiguous copy; black outside."""
    if (matrix == np.eye(3)).all():
        return images.copy()
    if (matrix == matrix.round()).all():  # pixels only change places
        interpolation = cv2.INTER_NEAREST
    moved = np.empty(images.shape, np.uint8)
    for image, target in zip(images, moved, strict=True):
        cv2.warpAffine(image, matrix[:2], image.shape[:2], dst=target, flags=interpolation)
    return moved
