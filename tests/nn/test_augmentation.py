"""Augmentation: one draw a stack, the same for the same generator, a new one for every sample and epoch."""

import random

import albumentations as A
import cv2
import numpy as np
import pytest

from src.core.runtime import sample_rng
from src.nn.augmentation import AppearanceChange, Augmentation, PlaceChange, StackAugmenter, centre_crop

SWITCHES = ("flip", "rotate90", "affine", "gamma", "dropout")
OFF = dict.fromkeys(SWITCHES, 0.0)


def stack(slices: int = 6) -> np.ndarray:
    one = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return np.repeat(one[None], slices, axis=0)


@pytest.mark.parametrize("switch", SWITCHES)
def test_stack_augmenter_draws_every_change_once_per_stack(switch):
    augment = StackAugmenter(32, Augmentation(**{**OFF, switch: 1.0}))
    changed = augment(stack(), sample_rng(0, 0, 0))[0]
    assert changed.shape == (6, 32, 32, 3) and changed.dtype == np.uint8
    assert (changed == changed[:1]).all()


@pytest.mark.parametrize("switch", SWITCHES)
def test_stack_augmenter_applies_every_switch(switch):
    plain = StackAugmenter(40, Augmentation(**OFF))(stack(), sample_rng(0, 0, 0))[0]
    augment = StackAugmenter(40, Augmentation(**{**OFF, switch: 1.0}))
    assert any((augment(stack(), sample_rng(0, 0, index))[0] != plain).any() for index in range(4))


def test_stack_augmenter_draws_follow_from_seed_epoch_and_index():
    first, second = StackAugmenter(32, Augmentation()), StackAugmenter(32, Augmentation())
    second(stack(), sample_rng(5, 5, 5))  # earlier draws must not matter
    keys = ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0))
    results = [first(stack(), sample_rng(*key))[0] for key in keys]
    for key, result in zip(keys, results, strict=True):
        assert (second(stack(), sample_rng(*key))[0] == result).all()
    assert all((results[0] != other).any() for other in results[1:])


def test_stack_augmenter_moves_label_maps_with_the_images():
    images = np.zeros((6, 40, 40, 1), np.uint8)
    images[:, 5:20, 8:30] = 200
    maps = np.where(images[..., 0] > 0, np.uint8(3), np.uint8(0))
    augment = StackAugmenter(36, Augmentation(gamma=0, dropout=0, flip=0.5, rotate90=0.5, affine=1.0))
    for index in range(6):
        changed, moved = augment(images, sample_rng(0, 0, index), maps)
        assert moved.shape == (6, 36, 36) and set(np.unique(moved)) == {0, 3}
        # the rim of a turned image is a mixture
        assert ((changed[..., 0] > 100) == (moved == 3)).mean() > 0.97


def smooth_stack(channels: int) -> np.ndarray:
    rough = np.random.default_rng(0).integers(0, 256, (5, 6, 6, channels), dtype=np.uint8)
    stretched = [cv2.resize(each, (40, 40), interpolation=cv2.INTER_CUBIC) for each in rough]
    return np.stack(stretched).reshape(5, 40, 40, channels)


def draw_from(rng: np.random.Generator, *pipelines: A.Compose) -> None:
    python_rng = random.Random(int(rng.integers(2**31)))
    for pipeline in pipelines:
        pipeline.set_random_state(rng, python_rng)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_stack_augmenter_equals_albumentations_change_by_change(channels):
    images = smooth_stack(channels)
    maps = images[..., 0] // 64
    augment = StackAugmenter(32, Augmentation(dropout=0))
    for seed in range(60):
        changed, moved = augment(images, sample_rng(seed, 0, 0), maps)
        draw_from(sample_rng(seed, 0, 0), augment.places, augment.levels)
        expected = augment.places(images=images, mask=np.moveaxis(maps, 0, -1).copy())
        images_expected = augment.levels(images=expected["images"])["images"]
        assert np.abs(changed.astype(int) - images_expected).mean() < 0.3  # of 255
        assert (moved == np.moveaxis(expected["mask"], -1, 0)).mean() > 0.998


def test_stack_augmenter_blackens_rectangles_of_images_alone():
    images = np.full((4, 40, 40, 2), 100, np.uint8)
    augment = StackAugmenter(32, Augmentation(**{**OFF, "dropout": 1.0, "gamma": 1.0}))
    for seed in range(10):
        changed, maps = augment(images, sample_rng(seed, 0, 0), np.ones((4, 40, 40), np.uint8))
        assert len(np.unique(changed)) == 2 and changed.min() == 0 and (maps == 1).all()
        assert 0.002 < (changed == 0).mean() < 0.1


@pytest.mark.parametrize("name", ["stack", "appearance"])
def test_augmentation_draws_each_change_by_itself(name):
    """Generators of one seed for all changes would make them happen together or not at all."""
    images = np.full((1, 16, 16, 1), 128, np.uint8)
    augmenter = StackAugmenter(16, Augmentation()) if name == "stack" else AppearanceChange(0.5)
    pipeline = augmenter.places if name == "stack" else augmenter.pipeline
    pipeline.save_applied_params = True
    switches = [type(change).__name__ for change in pipeline.transforms if change.p < 1]
    rows = []
    for seed in range(400):
        augmenter(images, sample_rng(seed, 0, 0))
        result = pipeline(images=images)  # goes on with the generators of the call
        rows.append([name in dict(result["applied_transforms"]) for name in switches])
    together = np.corrcoef(np.transpose(rows)) - np.eye(len(switches))
    assert len(switches) >= 5 and np.abs(together).max() < 0.2


def test_place_change_flips_and_moves_slices_and_labels_alike():
    images = smooth_stack(3)
    mask = np.where(images[2, ..., 0] > 128, np.uint8(2), np.uint8(1))
    still = PlaceChange(0.0, 0.0, ((1, 2),))(images, mask, sample_rng(0, 0, 0))
    assert (still[0] == images).all() and (still[1] == mask).all()
    flipped = PlaceChange(1.0, 0.0, ((1, 2),))(images, mask, sample_rng(0, 0, 0))
    assert (flipped[0] == images[:, :, ::-1]).all() and (flipped[1] == 3 - mask[:, ::-1]).all()
    moved = [PlaceChange(0.0, 1.0, ())(images, mask, sample_rng(seed, 0, 0)) for seed in range(5)]
    for changed, labels in moved:
        assert ((changed[2, ..., 0] > 128) == (labels == 2)).mean() > 0.95
        assert (changed != images).mean() > 0.3


def test_centre_crop_takes_the_middle():
    assert (centre_crop(stack(), 20) == stack()[:, 10:30, 10:30]).all()
